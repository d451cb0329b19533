"""What `hybridgen data` takes."""

import argparse
from pathlib import Path

from hybridgen.cli.arguments.types import add_overrides, check_out, new_command, path_to, whole_number
from hybridgen.core.recognition import require_file, user_path

ABOUT = """\
Count records, pictures, sizes, words and tokens; draw from the mixture and say what share of the tokens each
source gets; find what training and validation share, and what is broken. The table goes to stdout; a picture,
the table and the broken records are written to --out.

examples:
  hybridgen data inspect configs/demo_codec.yaml
  hybridgen data inspect pictures/
  hybridgen data inspect 'shards/{000..007}.tar' columns.text=json.caption streaming=true
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "data", "look at data before a run is spent on them", ABOUT)
    command.add_argument("action", choices=("inspect",), help="the only action")
    command.add_argument("what", metavar="SOURCE|CONFIG", help="a source as configs name it, or a config (.yaml)")
    add_overrides(command, "settings of the source, or of the config")
    command.add_argument(
        "--limit", type=whole_number(0), default=1000, help="records of each source; 0 = all (default: 1000)"
    )
    command.add_argument("--out", type=path_to, default=Path("inspected"), metavar="DIR", help="default: inspected")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the data."""
    if Path(options.what).suffix in (".yaml", ".yml"):
        require_file("config", user_path(options.what), "give the path of a YAML file")
    check_out(options.out)
