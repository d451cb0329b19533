"""Names of the files that pictures are written to."""

import pytest

from hybridgen.cli.pictures import slug


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("An orc, BLUE background!", "an-orc-blue-background"),
        ("猫", "picture"),
        ("a " * 40, "a" + "-a" * 23),
        ("", "picture"),
    ],
)
def test_names_of_files(prompt, name):
    assert slug(prompt) == name
