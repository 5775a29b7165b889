"""Every training script can be called as users type it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = (
    "train_world",
    "make_loras",
    "amortise",
    "refine_library",
    "train_lae",
    "train_dit",
    "train_regressor",
    "train_correction",
    "evaluation_cost",
    "evaluate",
    "preset_sizes",
    "benchmark",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_as_a_file(script: str, repository: Path) -> None:
    run = subprocess.run(
        [sys.executable, f"training/{script}.py", "--help"], capture_output=True, text=True, cwd=repository
    )
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
