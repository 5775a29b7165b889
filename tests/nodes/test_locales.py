"""English and Chinese texts of every node: complete, up to date, in a form that the host serves."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from translations import as_text, locale_file, translatable

pytestmark = pytest.mark.host
PLACEHOLDERS = r"%\w+%|<\w+>|\w+\.yaml|models/[\w/<>]+|\.safetensors|LORA_MODEL|HOOKS"
"""Words that a translation must not change."""


@pytest.fixture(scope="module")
def defined(server) -> dict:
    """The texts as the nodes define them."""
    return translatable(server.get("/object_info"))


def load(language: str) -> dict:
    return json.loads(locale_file(language).read_text(encoding="utf-8"))


def texts(nodes: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of keys -> text."""
    if isinstance(nodes, str):
        return {path: nodes}
    return {key: text for name, part in nodes.items() for key, text in texts(part, (*path, name)).items()}


def test_english_is_what_the_nodes_say(defined):
    assert locale_file("en").read_text(encoding="utf-8") == as_text(defined), (
        "a node has changed: run `python tests/nodes/translations.py`, then bring locales/zh up to date"
    )


def test_chinese_has_every_text_and_no_other(defined):
    wanted, have = texts(defined), texts(load("zh"))
    assert sorted(wanted.keys() - have.keys()) == [], "not translated"
    assert sorted(have.keys() - wanted.keys()) == [], "no node has these"
    assert all(text.strip() for text in have.values())


def test_chinese_is_chinese(defined):
    """Names of formats may stay as they are; descriptions and tooltips are sentences."""
    for path, text in texts(load("zh")).items():
        if path[-1] in ("description", "tooltip"):
            letters = re.findall(r"[\u4e00-\u9fff]", text)
            assert len(letters) > 5 or len(text) < 20, path
            assert not set(text) & set(string.punctuation) & {"!", "?"}, path  # full-width in Chinese
            assert text.endswith("。"), path


def test_chinese_keeps_what_must_be_typed_as_it_is(defined):
    chinese = texts(load("zh"))
    for path, text in texts(defined).items():
        for word in set(re.findall(PLACEHOLDERS, text)):
            assert word in chinese[path], f"{path} lost {word}"


def test_the_host_serves_both_languages(server, defined):
    served = server.get("/i18n")
    assert served["en"]["nodeDefs"].keys() == served["zh"]["nodeDefs"].keys() == defined.keys()
