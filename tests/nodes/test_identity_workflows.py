"""The identity workflows that ship: they fit the nodes, explain themselves, and show their point."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from browser import SHOW_PICTURES, find_chromium, run_in_browser
from host_server import api_prompt

pytestmark = pytest.mark.host
FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = ("several_photos", "best_of_eight", "blend_two")
NOTES = ("Note", "MarkdownNote")


@pytest.fixture(scope="module")
def object_info(server):
    """What the host knows about every node."""
    return server.get("/object_info")


def workflow(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(server, object_info):
    """Function: (title -> pictures (N, H, W, 3) that a node shows, title -> its text) of a workflow."""

    def run(name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        nodes = {str(node["id"]): node for node in workflow(name)["nodes"]}
        result = server.run(api_prompt(workflow(name), object_info))
        pictures = {
            nodes[key].get("title", key): np.stack(
                [np.asarray(Image.open(path)).astype(int) for path in server.files(result, key)]
            )
            for key in nodes
            if nodes[key]["type"] in SHOW_PICTURES
        }
        texts = {
            nodes[key].get("title", key): result.outputs[key]["text"][0]
            for key in nodes
            if nodes[key]["type"] == "PreviewAny"
        }
        return pictures, texts

    return run


@pytest.mark.parametrize("name", NAMES)
def test_fits_the_definitions_of_the_nodes(name, object_info):
    graph = workflow(name)
    prompt = api_prompt(graph, object_info)
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            assert len(node["widgets_values"][0]) > 200  # it explains the workflow
            continue
        info = object_info[node["type"]]
        defined = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [item["name"] for item in node["outputs"]] == info["output_name"], node["type"]
        given = prompt[str(node["id"])]["inputs"]
        assert info["input"].get("required", {}).keys() <= given.keys() <= defined.keys(), node["type"]
    assert any(node["type"] in NOTES for node in graph["nodes"])


def test_several_photos_leave_the_stranger_out(run):
    pictures, texts = run("several_photos")
    report = texts["Report: photos"]
    assert report.count(": used,") == 4 and "photo 5 of 5: not used, looks like another person" in report
    assert len(pictures["Aligned faces of the used photos"]) == 4
    assert float(re.search(r"similarity ([\d.]+)", texts["Likeness of the four pictures"])[1]) > 0.5


def test_best_of_eight_ranks_eight(run):
    pictures, texts = run("best_of_eight")
    ranked = [
        float(value) for value in re.findall(r"likeness ([\d.]+), seed", texts["Report: LoRA and ranking"])
    ]
    assert len(ranked) == 8 and ranked == sorted(ranked, reverse=True) and ranked[0] > ranked[-1]
    (sheet,) = pictures["Eight LoRAs, the one most alike on top"]
    assert sheet.shape[0] > 8 * 150 and sheet.std() > 20


def test_a_blend_lies_between_two_people(run):
    pictures, _ = run("blend_two")
    a, both, b = (pictures[name][0] for name in ("Person A", "Half A, half B", "Person B"))
    apart = np.abs(a - b).mean()
    assert apart > 5
    assert np.abs(a - both).mean() < apart and np.abs(b - both).mean() < apart


@pytest.mark.parametrize("name", NAMES)
def test_dragged_into_the_web_page_draws_pictures(server, tmp_path, name):
    pytest.importorskip("playwright", reason="the browser test needs: pip install playwright")
    if find_chromium() is None:
        pytest.skip("the browser test needs Chromium ($CHROMIUM)")
    assert run_in_browser(server.url, tmp_path / f"{name}.png", FOLDER / f"{name}.json") == []
