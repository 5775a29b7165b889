"""Every workflow that ships fits the nodes' definitions, explains itself, and draws what it is about."""

from __future__ import annotations

import json
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
NOTES = ("Note", "MarkdownNote")
WITH_NOTE = ("save_and_reuse", "two_people", "batch_of_people")


@pytest.fixture(scope="module")
def object_info(server):
    """What the host knows about every node."""
    return server.get("/object_info")


def workflow(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def titled(graph: dict, title: str) -> str:
    """Id of the only node with a title."""
    (node_id,) = [str(node["id"]) for node in graph["nodes"] if node.get("title") == title]
    return node_id


def drawn(server, object_info, name: str) -> tuple[dict, dict[str, list[np.ndarray]]]:
    """The workflow after a run: itself, and the pictures (H, W, 3) of each node that shows some."""
    graph = workflow(name)
    result = server.run(api_prompt(graph, object_info))
    shown = [str(node["id"]) for node in graph["nodes"] if node["type"] in SHOW_PICTURES]
    return graph, {
        node: [np.asarray(Image.open(path)).astype(int) for path in server.files(result, node)]
        for node in shown
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_fits_the_definitions_of_the_nodes(name, object_info):
    graph = workflow(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]  # the node exists
        defined = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        sockets = {item["name"]: item for item in node.get("inputs", [])}
        assert sockets.keys() <= defined.keys(), f"{node['type']} has no {sockets.keys() - defined.keys()}"
        given = api_prompt(graph, object_info)[str(node["id"])]["inputs"]
        assert info["input"].get("required", {}).keys() <= given.keys(), node["type"]
        for key, value in given.items():
            if not isinstance(value, list):
                check_value(f"{name}: {node['type']}.{key}", defined[key], value)
        outputs = [item["name"] for item in node.get("outputs", [])]
        assert outputs == info["output_name"][: len(outputs)], node["type"]  # later ones may have come since
    for _, source, output, target, slot, _ in graph["links"]:
        put_out = object_info[nodes[source]["type"]]["output"][output]
        taken = nodes[target]["inputs"][slot]["type"]
        assert put_out == taken or "*" in (put_out, taken), f"{nodes[source]['type']} {put_out} -> {taken}"


def check_value(where: str, definition: list, value: object) -> None:
    """The widget takes the value."""
    kind, options = definition[0], definition[1] if len(definition) > 1 else {}
    if isinstance(kind, list) or kind == "COMBO":
        assert value in (kind if isinstance(kind, list) else options["options"]), where
    elif kind in ("INT", "FLOAT"):
        assert isinstance(value, int | float) and not isinstance(value, bool), where
        assert options["min"] <= value <= options["max"], where
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), where


@pytest.mark.parametrize("name", WITH_NOTE)
def test_explains_itself(name):
    (note,) = [node for node in workflow(name)["nodes"] if node["type"] in NOTES]
    assert len(note["widgets_values"][0]) > 200


def test_save_and_reuse_draws_the_same_from_the_file(server, object_info):
    graph, shown = drawn(server, object_info, "save_and_reuse")
    (from_graph,) = shown[titled(graph, "LoRA from the graph")]
    (from_file,) = shown[titled(graph, "LoRA from the file: the same picture")]
    np.testing.assert_array_equal(from_graph, from_file)
    assert from_graph.std() > 20
    files = list((server.base / "models" / "loras" / "difflora").iterdir())
    assert {"".join(path.suffixes) for path in files} == {".safetensors", ".png", ".metadata.json"}


def test_two_people_are_two_people(server, object_info):
    graph, shown = drawn(server, object_info, "two_people")
    (picture,) = shown[titled(graph, "Two people")]
    left, right = np.split(picture, 2, axis=1)
    assert left.std() > 20 and right.std() > 20
    # the prompts' backgrounds, blue and yellow: each half followed its own prompt
    (left_corner, right_corner) = (half[:40, 100:-100].mean(axis=(0, 1)) for half in (left, right))
    assert left_corner[2] > left_corner[0] + 30 and right_corner[0] > right_corner[2] + 30


def test_batch_of_people_draws_everybody(server, object_info):
    graph, shown = drawn(server, object_info, "batch_of_people")
    pictures = shown[titled(graph, "Everybody, same prompt and seed")]
    assert len(pictures) == 4
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).mean() > 2  # somebody else
    assert len(list((server.base / "models" / "loras" / "people").glob("*.safetensors"))) == 4


@pytest.mark.parametrize("name", WITH_NOTE)
def test_dragged_into_the_web_page_draws_pictures(server, tmp_path, name):
    pytest.importorskip("playwright", reason="the browser test needs: pip install playwright")
    if find_chromium() is None:
        pytest.skip("the browser test needs Chromium ($CHROMIUM)")
    assert run_in_browser(server.url, tmp_path / f"{name}.png", FOLDER / f"{name}.json") == []
