"""The README promises commands, files and numbers: they exist, and CI runs what it says."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def test_exactly_two_commands_do_the_set_up_and_ci_runs_the_tests_word_for_word():
    set_up = [command for command in commands() if command.startswith("python3 -m venv")]
    assert len(set_up) == 2
    assert set_up[0].endswith(".venv/bin/python -m difflora demo")
    assert set_up[1].endswith(".venv/bin/python -m pytest")
    assert set_up[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("extra", re.findall(r'"\.\[(\w+)\]"', README))
def test_extras_exist(extra):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)


MODULES = sorted(set(re.findall(r"python -m ((?:difflora|training)[\w.]*)", README)))


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_the_commands_exist(module):
    assert importlib.util.find_spec(module) is not None


def test_linked_files_and_pictures_exist():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README links {target}"


def test_picture_by_line_5_and_first_command_by_line_25():
    lines = README.splitlines()
    assert any(line.startswith("![") for line in lines[:5])
    assert any(line.startswith("python3 -m venv") for line in lines[:25])


def test_numbers_come_from_the_committed_measurement():
    table = re.search(r"<!-- evaluation:.*?-->\n(.*?)<!-- /evaluation -->", README, flags=re.DOTALL)
    assert table is not None
    path = ROOT / "docs" / "evaluation.json"
    if not path.exists():
        assert table[1].strip() == "", "the README has a table, docs/evaluation.json does not exist"
        pytest.skip("docs/evaluation.json has not been written yet")
    from training.evaluation_report import readme_table

    assert table[1] == readme_table(json.loads(path.read_text(encoding="utf-8")))
