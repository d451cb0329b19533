"""Processes that have imported everything before they start: alone or several together, in a fraction of a second, so
that a test can kill many of them."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from hybridgen.cli.main import main
from tests.core.disk_calls import skip_flushing
from tests.training import toy

skip_flushing()
ROOT = Path(__file__).parents[2]
ENGINES = ("ACCELERATE_", "FSDP_", "PARALLELISM_")  # begin the names of what chooses one
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.processes"])


class ProcessGroup:
    """Processes that run `work(**arguments)` together, as torchrun would start them.

    Args:
        folder: gets `rank_N.log`, what each of them wrote.
        form: which of configs/accelerate/ says how they share the work.
    """

    def __init__(self, folder: Path, work, processes: int = 1, form: str = "single", /, **arguments):
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank_{rank}.log" for rank in range(processes)]
        shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        alone = processes == 1 and form == "single"
        if not alone:
            shared |= launched_with(form, processes)
        self.processes = []
        for rank, log in enumerate(self.logs):
            environment = {} if alone else shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = SERVER.Process(target=_run, args=(work, arguments, environment, log), daemon=True)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 200.0) -> list[int]:
        """The exit codes; fails if any is still running then."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert None not in codes, f"no end after {seconds} s: {self.output()}"
        return codes

    def finish(self) -> str:
        """All end well; returns what they said."""
        assert set(self.wait()) == {0}, self.output()
        return self.output()

    def wait_for(self, path: Path, seconds: float = 200.0) -> None:
        until = time.monotonic() + seconds
        while not path.exists():
            assert all(process.exitcode is None for process in self.processes), self.output()
            assert time.monotonic() < until, self.output()
            time.sleep(0.02)

    def kill(self, rank: int | None = None, how: signal.Signals = signal.SIGKILL) -> None:
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, how)

    def output(self, rank: int | None = None) -> str:
        logs = self.logs if rank is None else [self.logs[rank]]
        return "\n".join(log.read_text() for log in logs if log.exists())


def start_command(words: list[str], log: Path) -> multiprocessing.Process:
    """`hybridgen WORDS`, which may start processes itself; `log` gets what it says."""
    process = SERVER.Process(target=_run, args=(_command, {"words": words}, {}, log), daemon=False)
    process.start()
    return process


def _command(words: list[str]) -> None:
    sys.exit(main(words))


def launched_with(form: str, processes: int) -> dict[str, str]:
    """What `accelerate launch` puts into the environment for a config of ours."""
    config = ROOT / "configs" / "accelerate" / f"{form}.yaml"
    words = ["--config_file", str(config), "--num_processes", str(processes), "--main_process_port", "0"]
    words += ["--num_machines", "1"]  # if of several, they are pretended
    if form.startswith("hsdp"):  # two nodes
        sizes = {"dp_replicate": 2, "dp_shard": processes // 2}
        words += [each for name, size in sizes.items() for each in (f"--parallelism_config_{name}_size", str(size))]
    words += ["script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.nproc_per_node == str(processes)
    return {name: value for name, value in environment.items() if name.startswith(ENGINES)}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _run(work, arguments: dict, environment: dict[str, str], log: Path) -> None:
    """In the new process: as the command line does, a sentence and 2 for what the user can mend."""
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    try:
        work(**arguments)
    except (ValueError, OSError) as error:
        print(f"hybridgen: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def train_toy(folder: Path, changes: dict | None = None, **stage) -> None:
    toy.train(toy.config_of(folder, **(changes or {})), **stage)
