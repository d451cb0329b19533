"""Importing hybridgen: it mends torchvision where that is broken, and does no work."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_transforms_work_after_import_and_the_guard_runs_once():
    code = (
        "import hybridgen, torch, torchvision; from hybridgen.compatibility import mend_torchvision;"
        "from torchvision.transforms import functional as F;"
        "print(mend_torchvision(), F.resize(torch.zeros(3, 8, 8), [4, 4]).shape)"
    )
    assert run(code) == "False torch.Size([3, 4, 4])"


def test_import_draws_no_random_number_and_makes_no_file(tmp_path):
    code = (
        f"import os, torch; os.chdir({str(tmp_path)!r}); before = torch.get_rng_state(); import hybridgen;"
        "print(torch.equal(before, torch.get_rng_state()), os.listdir('.'))"
    )
    assert run(code) == "True []"
