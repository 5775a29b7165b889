"""The pack in a real ComfyUI, over HTTP: the shipped workflow, core nodes beside ours, and bad input."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from host_server import ExecutionFailed, Interrupted, api_prompt

PACK = Path(__file__).resolve().parents[2]
WEIGHTS = PACK / "difflora" / "synthetic" / "weights"
NODE_IDS = {
    "DiffLoRALoadModel",
    "DiffLoRALoadFaceAnalysis",
    "DiffLoRADoctor",
    "DiffLoRAEncodePhotos",
    "DiffLoRAGenerate",
    "DiffLoRAApply",
    "DiffLoRALoraToHooks",
    "DiffLoRASaveLora",
    "DiffLoRABatchPeople",
    "DiffLoRASyntheticPeopleFolder",
    "DiffLoRALoadSyntheticWorld",
    "DiffLoRASyntheticPhotos",
    "DiffLoRAPersonalise",
    "DiffLoRASaveIdentity",
    "DiffLoRALoadIdentity",
    "DiffLoRABlend",
    "DiffLoRASimilarity",
}

pytestmark = pytest.mark.host
needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "difflora.safetensors").is_file(), reason="the trained weights are not in this checkout"
)


@pytest.fixture(scope="module")
def object_info(server):
    """What the host knows about every node."""
    return server.get("/object_info")


@pytest.fixture
def prompt(object_info):
    """The shipped workflow as a client would send it, with one picture instead of four."""
    workflow = json.loads((PACK / "workflows" / "synthetic.json").read_text(encoding="utf-8"))
    prompt = api_prompt(workflow, object_info)
    prompt[node_of(prompt, "EmptyLatentImage")]["inputs"]["batch_size"] = 1
    return prompt


def node_of(prompt: dict, class_type: str) -> str:
    """Id of the only node of a class."""
    (node_id,) = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return node_id


def set_input(prompt: dict, class_type: str, **values: object) -> dict:
    """A copy of the prompt with other inputs of one node."""
    changed = copy.deepcopy(prompt)
    changed[node_of(changed, class_type)]["inputs"].update(values)
    return changed


def picture(server, prompt: dict) -> np.ndarray:
    """The saved picture, (H, W, 3) in 0..255."""
    result = server.run(prompt)
    (path,) = server.files(result, node_of(prompt, "SaveImage"))
    return np.asarray(Image.open(path)).astype(int)


def test_every_node_is_there_with_a_tooltip_on_every_socket(object_info):
    ours = {key: node for key, node in object_info.items() if node["category"] == "DiffLoRA"}
    assert set(ours) == NODE_IDS
    for node_id, node in ours.items():
        assert node["description"], node_id
        for group in ("required", "optional"):
            for name, (_, options) in node["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{node_id}.{name} has no tooltip"
        assert all(node["output_tooltips"]), f"{node_id}: an output has no tooltip"
        assert (PACK / "web" / "docs" / f"{node_id}.md").is_file(), f"{node_id} has no help page"


def test_workflow_and_help_pages_are_served(server):
    files = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")["ComfyUI-DiffLoRA"]) == files
    for node_id in NODE_IDS:
        assert server.get_text(f"/extensions/ComfyUI-DiffLoRA/docs/{node_id}.md").startswith("# ")


@needs_weights
def test_workflow_draws_a_person_from_an_empty_input_folder(server, prompt):
    drawn = picture(server, prompt)
    assert drawn.std() > 20  # not one colour
    base_model = picture(server, set_input(prompt, "DiffLoRAApply", strength=0.0))
    assert np.abs(drawn - base_model).mean() > 2  # the LoRA does something
    np.testing.assert_array_equal(drawn, picture(server, prompt))  # the same seeds, the same picture


@needs_weights
def test_saved_by_core_node_and_loaded_by_core_loader_draws_the_same(server, prompt, object_info):
    shutil.rmtree(server.base / "output" / "loras", ignore_errors=True)
    expected = picture(server, set_input(prompt, "DiffLoRAApply", strength=1.0))

    save = "SaveLoRA" if "SaveLoRA" in object_info else "SaveLoRANode"  # renamed in 0.3.76
    lora = [node_of(prompt, "DiffLoRAGenerate"), 0]
    saving = {**prompt, "save": {"class_type": save, "inputs": {"lora": lora, "prefix": "loras/person"}}}
    server.run(saving)
    (path,) = (server.base / "output" / "loras").glob("*.safetensors")

    for loader, inputs in (
        ("LoraLoaderModelOnly", {"lora_name": path.name, "strength_model": 1.0}),
        ("LoraModelLoader", {"lora": lora, "strength_model": 1.0, "bypass": False}),
    ):
        apply = node_of(prompt, "DiffLoRAApply")
        known = {
            **object_info[loader]["input"]["required"],
            **object_info[loader]["input"].get("optional", {}),
        }
        inputs = {name: value for name, value in inputs.items() if name in known}
        model = prompt[apply]["inputs"]["model"]
        loaded = {**prompt, apply: {"class_type": loader, "inputs": {"model": model, **inputs}}}
        np.testing.assert_array_equal(picture(server, loaded), expected, err_msg=loader)


@needs_weights
def test_changing_the_seed_does_not_encode_again(server, prompt):
    server.run(prompt)
    result = server.run(set_input(prompt, "DiffLoRAGenerate", seed=12345))
    for class_type in ("DiffLoRALoadModel", "DiffLoRALoadSyntheticWorld", "DiffLoRAEncodePhotos"):
        assert node_of(prompt, class_type) in result.cached, f"{class_type} ran again"
    assert node_of(prompt, "DiffLoRAGenerate") not in result.cached


@needs_weights
def test_cancel_stops_the_sampling_of_the_lora(server, prompt):
    server.run(prompt)  # everything before the sampling comes from the cache afterwards
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run, set_input(prompt, "DiffLoRAGenerate", steps=1000, seed=7))
        while not server.get("/queue")["queue_running"]:
            time.sleep(0.02)
        server.interrupt()
        with pytest.raises(Interrupted, match="DiffLoRAGenerate"):
            running.result()


def with_photo(prompt: dict, kind: str, count: int = 1) -> dict:
    """The prompt with a bad picture as reference photo."""
    source = node_of(prompt, "DiffLoRASyntheticPhotos")
    changed = set_input(prompt, "DiffLoRASyntheticPhotos", count=count)
    changed["bad"] = {"class_type": "TestPicture", "inputs": {"kind": kind, "image": [source, 0]}}
    return set_input(changed, "DiffLoRAEncodePhotos", photos=["bad", 0])


def report(server, prompt: dict) -> str:
    """The report of Encode Reference Photos."""
    text = {"class_type": "TestShowText", "inputs": {"text": [node_of(prompt, "DiffLoRAEncodePhotos"), 1]}}
    return server.run({**prompt, "report": text}).outputs["report"]["text"][0]


@needs_weights
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("blank", "no face"),
        ("1x1", r"1 x 1 px: use one of at least 32 x 32 px"),
        ("nan", "NaN or infinite"),
    ],
)
def test_unusable_photo_is_one_clear_error(server, prompt, kind, words):
    with pytest.raises(ExecutionFailed, match=words):
        server.run(with_photo(prompt, kind))


@needs_weights
@pytest.mark.parametrize("kind", ["rgba", "grey"])
def test_unusual_photo_is_taken(server, prompt, kind):
    assert "one face found" in report(server, with_photo(prompt, kind))


@needs_weights
def test_of_several_people_the_largest_face_is_taken_and_reported(server, prompt):
    assert re.search(
        r"2 faces found, the largest was taken", report(server, with_photo(prompt, "two_people", 2))
    )


@needs_weights
def test_photos_of_other_sizes_come_through_the_optional_sockets(server, prompt):
    prompt["larger"] = {
        "class_type": "ImageScaleBy",
        "inputs": {
            "image": [node_of(prompt, "DiffLoRASyntheticPhotos"), 0],
            "upscale_method": "lanczos",
            "scale_by": 3,
        },
    }
    text = report(server, set_input(prompt, "DiffLoRAEncodePhotos", photos_3=["larger", 0]))
    assert "photo 2 of 2: used" in text


@needs_weights
@pytest.mark.parametrize(
    ("name", "words"), [("truncated", "truncated"), ("foreign", "not a DiffLoRA checkpoint")]
)
def test_unusable_checkpoint_is_one_clear_error(server, prompt, name, words):
    with pytest.raises(ExecutionFailed, match=words):
        server.run(set_input(prompt, "DiffLoRALoadModel", checkpoint=f"{name}.safetensors"))


@needs_weights
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("renamed", "is not in this MODEL"),
        ("one_shape", r"1 of \d+ modules are wrong"),
        ("half", "lacks lora_up"),
        ("nan", "holds NaN"),
        ("empty", "it is empty"),
    ],
)
def test_lora_of_another_base_model_is_refused_before_patching(server, prompt, kind, words):
    lora = {
        "class_type": "TestLora",
        "inputs": {"kind": kind, "lora": [node_of(prompt, "DiffLoRAGenerate"), 0]},
    }
    with pytest.raises(ExecutionFailed, match=words) as caught:
        server.run(set_input({**prompt, "wrong": lora}, "DiffLoRAApply", lora=["wrong", 0]))
    assert "nothing was patched" in str(caught.value)
