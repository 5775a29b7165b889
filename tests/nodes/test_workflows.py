"""Every workflow that ships fits the nodes' definitions, explains itself, and draws what it is about."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from browser import SHOW_PICTURES, WORKFLOWS, find_chromium, run_in_browser, synthetic_workflows
from host_server import ExecutionFailed, api_prompt

pytestmark = pytest.mark.host
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SYNTHETIC = [path.stem for path in synthetic_workflows()]
NOTES = ("Note", "MarkdownNote")
TITLE_PX = 30
"""Height of a node's title, which is above its position."""
CONSENT = "who agreed to it"
FILES = {"ckpt_name", "clip_name", "image", "pack", "checkpoint"}
"""Inputs that name a file; not every host checks the last one before it runs."""
NOT_NEEDED = ("DiffLoRALoadFaceAnalysis", "CLIPVisionLoader")
"""Nodes that the built-in checkpoint does without."""
FEW = {"candidates": 2, "preview_steps": 6}
"""What a test can pay for a ranking."""
FOLDER = {"folder": "twins", "people": 2, "count": 1, "scene_seed": 3}


@pytest.fixture(scope="module")
def object_info(server):
    """What the host knows about every node."""
    return server.get("/object_info")


def workflow(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def note_of(graph: dict) -> str:
    (note,) = [node for node in graph["nodes"] if node["type"] in NOTES]
    return note["widgets_values"][0]


@pytest.fixture(scope="module")
def run(server, object_info):
    """Function: (title -> pictures (N, H, W, 3) that a node shows, title -> its text) of a workflow."""

    def run(name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        nodes = {str(node["id"]): node for node in workflow(name)["nodes"]}
        result = server.run(api_prompt(workflow(name), object_info))
        pictures, texts = {}, {}
        for key, node in nodes.items():
            title = node.get("title", key)
            if node["type"] in SHOW_PICTURES:
                files = [Image.open(path) for path in server.files(result, key)]
                pictures[title] = np.stack([np.asarray(file).astype(int) for file in files])
            elif node["type"] == "PreviewAny":
                texts[title] = result.outputs[key]["text"][0]
        return pictures, texts

    return run


@pytest.mark.parametrize("name", NAMES)
def test_fits_the_definitions_of_the_nodes(name, object_info):
    graph = workflow(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    prompt = api_prompt(graph, object_info)
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]  # the node exists
        defined = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        sockets = {item["name"] for item in node.get("inputs", [])}
        outputs = [item["name"] for item in node.get("outputs", [])]
        if node["type"].startswith("DiffLoRA"):  # a picture of the workflow shows all that the node has now
            assert (sockets, outputs) == (defined.keys(), info["output_name"]), node["type"]
        else:  # another version of the host may have more
            assert sockets <= defined.keys() | {"upload"}, node["type"]
            assert outputs == info["output_name"][: len(outputs)], node["type"]
        given = prompt[str(node["id"])]["inputs"]
        assert info["input"].get("required", {}).keys() <= given.keys(), node["type"]
        for key, value in given.items():
            if not isinstance(value, list) and name in SYNTHETIC:
                check_value(f"{name}: {node['type']}.{key}", defined[key], value)
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


@pytest.mark.parametrize("name", NAMES)
def test_explains_itself_in_a_few_sentences(name):
    note = note_of(workflow(name))
    assert note.startswith("## ")
    sentences = re.findall(r"[.:] |[.:]\n|[.:]$", re.sub(r"(?m)^- .*$", "", note))
    assert 2 <= len(sentences) <= 6 and len(note) < 800
    titles = {node.get("title") for node in workflow(name)["nodes"]}
    assert "About this workflow" in titles


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another(name):
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in workflow(name)["nodes"]]
    for i, (x, y, width, height, kind) in enumerate(boxes):
        for x2, y2, width2, height2, other in boxes[:i]:
            apart = x + width <= x2 or x2 + width2 <= x
            above = y + height <= y2 - TITLE_PX or y2 + height2 <= y - TITLE_PX
            assert apart or above, f"{kind} and {other}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SYNTHETIC])
def test_a_workflow_of_sdxl_lacks_nothing_but_files(server, object_info, name):
    graph = workflow(name)
    prompt, note = api_prompt(graph, object_info), note_of(graph)
    with pytest.raises(ExecutionFailed) as caught:
        server.run(prompt)
    missing = {}
    for node_id, node in json.loads(str(caught.value))["node_errors"].items():
        for error in node["errors"]:
            assert error["type"] in ("value_not_in_list", "custom_validation_failed"), error
            key = error["extra_info"]["input_name"]
            missing[key] = prompt[node_id]["inputs"][key]
    wanted = {key for node in prompt.values() for key in FILES & node["inputs"].keys()}
    assert wanted - {"checkpoint"} <= missing.keys() <= wanted
    assert {"ckpt_name", "clip_name", "pack"} <= wanted
    for node in prompt.values():
        for key in FILES & node["inputs"].keys():  # the note says where each of them goes
            assert f"{node['inputs'][key]}`" in note
    assert "No DiffLoRA checkpoint for SDXL is published by us yet" in note and CONSENT in note


def who_is_on(photo: str) -> str:
    """anna of anna_2.jpg."""
    return Path(photo).stem.split("_")[0]


def in_the_synthetic_world(prompt: dict) -> dict:
    """The prompt of an SDXL workflow with the files that everybody has, at a size that a test can pay."""
    built_in = {
        "CheckpointLoaderSimple": ("DiffLoRALoadSyntheticWorld", {}),
        "DiffLoRALoadModel": ("DiffLoRALoadModel", {"checkpoint": "synthetic world (built in)"}),
        "LoadImage": ("DiffLoRASyntheticPhotos", {"count": 1}),
    }
    small = {1216: 128, 1024: 64, 832: 64, 608: 64}
    small_prompt = {}
    photos = [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"]
    people = sorted({who_is_on(photo) for photo in photos})
    for node_id, node in prompt.items():
        kind, inputs = built_in.get(node["class_type"], (node["class_type"], dict(node["inputs"])))
        for key in {"width", "height", "x"} & inputs.keys():
            inputs[key] = small.get(inputs[key], inputs[key])
        inputs |= {key: min(inputs[key], most) for key, most in FEW.items() if key in inputs}
        if kind == "KSampler":
            inputs |= {"steps": 6, "cfg": 1.0}
        if "set_cond_area" in inputs:  # the tiny model has learnt one face per picture of 64 px
            inputs["set_cond_area"] = "mask bounds"
        if kind == "DiffLoRASyntheticPhotos":
            photo = node["inputs"]["image"]
            inputs = {**inputs, "person": people.index(who_is_on(photo)), "scene_seed": photos.index(photo)}
        if kind == "DiffLoRABatchPeople":
            inputs["folder"] = ["folder", 0]
            small_prompt["folder"] = prompts.node("DiffLoRASyntheticPeopleFolder", **FOLDER)
        small_prompt[node_id] = {"class_type": kind, "inputs": inputs}
    loaders = {key for key, node in small_prompt.items() if node["class_type"] in NOT_NEEDED}
    return {key: node for key, node in small_prompt.items() if key not in loaders}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SYNTHETIC])
def test_a_workflow_of_sdxl_is_wired_right(server, object_info, name):
    """With other loaders the very same graph draws in the synthetic world."""
    prompt = in_the_synthetic_world(api_prompt(workflow(name), object_info))
    (save,) = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    paths = server.files(server.run(prompt), save)
    picture = np.asarray(Image.open(paths[0])).astype(int)
    assert picture.std() > 20
    people = ["person_0", "person_1"] if name == "sdxl_batch_of_people" else ["DiffLoRA"]
    assert [path.name.split("_0000")[0] for path in paths] == people  # a picture of each, by name
    if name == "sdxl_two_people":  # each half with its own LoRA
        assert picture.shape[1] == 2 * picture.shape[0]
        swapped = copy.deepcopy(prompt)
        left, right = (key for key, node in prompt.items() if node["class_type"] == "DiffLoRASyntheticPhotos")
        swapped[left]["inputs"]["person"] = prompt[right]["inputs"]["person"]
        (path,) = server.files(server.run(swapped), save)
        changed = np.abs(np.asarray(Image.open(path)).astype(int) - picture).mean(axis=(0, 2))  # (width,)
        half = len(changed) // 2
        assert changed[:half].mean() > 2 * changed[half:].mean()  # another person on the left only


def test_synthetic_draws_the_person_instead_of_somebody(run):
    pictures, texts = run("synthetic")
    base, person = pictures["Base model: somebody else every time"], pictures["With the LoRA: this person"]
    assert len(base) == len(person) == 4
    assert varies(person) < varies(base)  # four times the same person, not four people
    assert "one face found" in texts["Report: photos"] and "rank" in texts["Report: LoRA"]


def varies(pictures: np.ndarray) -> float:
    """How much pictures (N, H, W, 3) differ from their mean."""
    return float(np.abs(pictures - pictures.mean(axis=0)).mean())


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


def test_two_people_are_two_people(run):
    (picture,) = run("two_people")[0]["Two people"]
    left, right = np.split(picture, 2, axis=1)
    assert left.std() > 20 and right.std() > 20
    # the prompts' backgrounds, blue and yellow: each half followed its own prompt
    (left_corner, right_corner) = (half[:40, 100:-100].mean(axis=(0, 1)) for half in (left, right))
    assert left_corner[2] > left_corner[0] + 30 and right_corner[0] > right_corner[2] + 30


def test_save_and_reuse_draws_the_same_from_the_file(server, run):
    pictures, texts = run("save_and_reuse")
    from_graph, from_file = (
        pictures[name] for name in ("LoRA from the graph", "LoRA from the file: the same picture")
    )
    np.testing.assert_array_equal(from_graph, from_file)
    assert from_graph.std() > 20
    folder = server.base / "models" / "loras"
    assert (folder / texts["The file"]).is_file()
    files = (folder / "difflora").iterdir()
    assert {"".join(path.suffixes) for path in files} == {".safetensors", ".png", ".metadata.json"}


def test_batch_of_people_draws_everybody(server, run):
    pictures = run("batch_of_people")[0]["Everybody, same prompt and seed"]
    assert len(pictures) == 4
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).mean() > 2  # somebody else
    assert len(list((server.base / "models" / "loras" / "people").glob("*.safetensors"))) == 4


@pytest.mark.parametrize("name", SYNTHETIC)
def test_dragged_into_the_web_page_draws_pictures(server, tmp_path, name):
    pytest.importorskip("playwright", reason="the browser test needs: pip install playwright")
    if find_chromium() is None:
        pytest.skip("the browser test needs Chromium ($CHROMIUM)")
    assert run_in_browser(server.url, tmp_path / f"{name}.png", WORKFLOWS / f"{name}.json") == []
