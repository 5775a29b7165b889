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
    "tune_regressor",
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


@pytest.mark.parametrize("script", ["amortise", "train_lae", "train_dit"])
def test_a_missing_library_is_one_line(script: str, repository: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        f"training.{script}",
        "--library",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    run = subprocess.run(words, capture_output=True, text=True, cwd=repository)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"error: {tmp_path} is not a run folder" in run.stderr
