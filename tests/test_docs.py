"""Documents and help pages link to files that exist and quote errors that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/**/*.md")])
LINK = r"\]\((?!https?://)([^)#]+)\)"
QUOTE = r"“([^”]+)”"
FILE = r"`((?:workflows|docs|training|difflora|nodes)/[\w/.-]+\.\w+)`"
NO_ERRORS = ("a person",)
"""Quoted in the documents, but a prompt."""


def source() -> str:
    """All code of the library and the nodes, with string literals joined as Python joins them."""
    files = [path for folder in ("difflora", "nodes") for path in (ROOT / folder).rglob("*.py")]
    return re.sub(r'"\s+f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(LINK, text):
        assert (page.parent / target).exists(), f"{page.name} links {target}"
    for target in re.findall(FILE, text):
        assert (ROOT / target).exists(), f"{page.name} names {target}"


def test_troubleshooting_quotes_errors_that_exist():
    code, page = source(), (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = [quote for quote in re.findall(QUOTE, page) if quote not in NO_ERRORS]
    assert len(quotes) > 20
    for quote in quotes:
        for part in quote.split("…"):
            assert part.strip() in code, f"no error says {part.strip()!r}"


@pytest.mark.parametrize("page", sorted(ROOT.glob("web/docs/*.md")), ids=lambda page: page.stem)
def test_help_page_is_of_a_node_and_names_it(page):
    title = re.match(r"# (.+)\n", page.read_text(encoding="utf-8"))
    assert title is not None
    code = source()
    declared = re.search(rf'node_id="{page.stem}",\s*display_name="([^"]+)"', code)
    assert declared is not None, f"there is no node {page.stem}"
    assert title[1] == declared[1]


def test_every_node_has_a_help_page():
    nodes = set(re.findall(r'node_id="(\w+)"', source()))
    assert nodes == {page.stem for page in ROOT.glob("web/docs/*.md")}
    assert len(nodes) > 10


def test_chinese_help_pages_name_what_the_node_names_in_chinese():
    """ComfyUI takes docs/<node id>/<language>.md where there is one, else docs/<node id>.md."""
    nodes = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {page.parent.name for page in ROOT.glob("web/docs/*/zh.md")} == nodes.keys()
    for node_id, texts in nodes.items():
        page = (ROOT / "web" / "docs" / node_id / "zh.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {texts['display_name']}\n")
        named = {entry["name"] for kind in ("inputs", "outputs") for entry in texts[kind].values()}
        assert set(re.findall(r"^- \*\*(.+?)\*\*", page, re.MULTILINE)) <= named | {"set_cond_area"}, node_id
        others = {entry["display_name"] for entry in nodes.values()}
        assert set(re.findall(QUOTE, page)) <= others, node_id
