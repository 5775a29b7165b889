"""Every study can be called as users type it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("script", ["learnability", "autoencoder"])
def test_a_study_runs_as_a_file(script, repository):
    run = subprocess.run(
        [sys.executable, f"studies/{script}.py", "--help"], capture_output=True, text=True, cwd=repository
    )
    assert run.returncode == 0, run.stderr
    assert "--people" in run.stdout and "--held-out" in run.stdout
