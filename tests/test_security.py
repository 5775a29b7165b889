"""What a security scanner for node packs says; it runs where nodesafe is installed (`pip install nodesafe`).

nodesafe calls a pack clean only if it finds nothing at all, and it takes docstrings with formulas and long
messages for encoded payloads. So the level counts: "high" and "critical" are what makes it advise against
installing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("difflora", "locales", "nodes", "web", "workflows")
# They start processes and mean it: ComfyUI, workers, a script as a user types it. None of them is published.
STARTS_PROCESSES = {
    "tests/nodes/host_server.py",
    "tests/studies/test_scripts.py",
    "tests/studies/test_transformer.py",
    "tests/test_layering.py",
    "tests/training/test_scripts.py",
    "training/benchmark.py",
    "training/evaluation_cost.py",
    "training/make_loras.py",
    "training/measure_import.py",
}


def alarms(folder: str) -> set[tuple[str, str]]:
    """(file, category) of every finding that makes nodesafe advise against installing."""
    scanner = pytest.importorskip(
        "nodesafe.scanner", reason="nodesafe is not installed: pip install nodesafe"
    )
    findings = scanner.Scanner().scan(ROOT / folder).findings
    return {
        (f"{folder}/{finding.file}", finding.category)
        for finding in findings
        if finding.severity.value in ("high", "critical")
    }


def published(path: str) -> bool:
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert all((ROOT / pattern).exists() for pattern in patterns), "a line of .comfyignore names nothing"
    return not path.startswith(tuple(patterns))


@pytest.mark.parametrize("folder", PACKAGE)
def test_nothing_of_the_published_package_raises_an_alarm(folder):
    assert published(f"{folder}/x")
    assert alarms(folder) == set()


@pytest.mark.parametrize("folder", ["benchmarks", "studies", "tests", "training"])
def test_only_scripts_that_start_processes_raise_an_alarm(folder):
    assert not published(f"{folder}/x")
    expected = {(path, "shell_execution") for path in STARTS_PROCESSES if path.startswith(f"{folder}/")}
    assert alarms(folder) == expected
