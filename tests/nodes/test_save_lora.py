"""Save LoRA in a real ComfyUI: a whole file in the right place, which draws the same in the core loader."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from difflora.checkpoint import load_checkpoint
from difflora.files import load_safetensors
from difflora.lora import Lora
from difflora.model import EMBEDDED_CHECKPOINT

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from host_server import ExecutionFailed

pytestmark = pytest.mark.host
DEFAULTS = {"folder": "models/loras", "key_style": "kohya", "dtype": "fp16", "rank": 0}


def saving(name: str, **inputs: object) -> dict:
    """Person 0's LoRA through Save LoRA."""
    given = {"lora": ["lora", 0], "name": name, **DEFAULTS, **inputs}
    return {**prompts.person(), "save_lora": prompts.node("DiffLoRASaveLora", **given)}


def saved(server, graph: dict) -> Path:
    """Run it and say where the file is."""
    return Path(prompts.text_of(server, graph, "save_lora", 1))


def core_loader(name: object, model: list = ("world", 0)) -> dict:
    """The core loader, strength 1."""
    return prompts.node("LoraLoaderModelOnly", model=list(model), lora_name=name, strength_model=1.0)


def test_core_loader_lists_the_file_at_once_and_draws_the_same(server):
    expected = prompts.pictures(server, prompts.applied(1.0))
    path = saved(server, saving("saved/anna"))
    assert path == server.base / "models" / "loras" / "saved" / "anna_00001_.safetensors"
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    name = os.path.join("saved", path.name)
    assert name in listed
    graph = {**prompts.plain(), "load": core_loader(name)}
    graph["sampler"]["inputs"]["model"] = ["load", 0]
    np.testing.assert_array_equal(prompts.pictures(server, graph), expected)


def test_lora_name_feeds_the_core_loader_in_one_graph(server):
    graph = {**prompts.plain(), **saving("linked/anna"), "load": core_loader(["save_lora", 0])}
    graph["sampler"]["inputs"]["model"] = ["load", 0]
    np.testing.assert_array_equal(
        prompts.pictures(server, graph), prompts.pictures(server, prompts.applied(1.0))
    )


def test_counter_never_overwrites(server):
    first = saved(server, saving("count/anna"))
    content = first.read_bytes()
    second = saved(server, saving("count/anna", rank=1))
    third = saved(server, saving("count/anna.safetensors"))  # the suffix is not doubled
    assert [path.name for path in (first, second, third)] == [f"anna_0000{n}_.safetensors" for n in (1, 2, 3)]
    assert first.read_bytes() == content and second.stat().st_size < len(content) / 2
    assert sorted(first.parent.glob("*.safetensors")) == [first, second, third]  # nothing half-written


def test_everything_beside_and_inside_of_the_file(server):
    graph = {**prompts.applied(1.0), **saving("dressed/anna", title="Ann", description="She agreed.")}
    graph["save_lora"]["inputs"] |= {"thumbnail": ["decode", 0]}
    path = saved(server, graph)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "anna_00001_.metadata.json",
        "anna_00001_.png",
        "anna_00001_.safetensors",
    ]
    with Image.open(path.with_suffix(".png")) as preview:
        again = prompts.applied(1.0)
        again["save"]["inputs"]["filename_prefix"] = "beside"  # newer hosts leave cached nodes out
        drawn = prompts.pictures(server, again)[0]
        assert np.abs(np.asarray(preview) - drawn).max() <= 1  # core's Save Image rounds down
    _, metadata = load_safetensors(path)
    assert (metadata["modelspec.title"], metadata["modelspec.description"]) == ("Ann", "She agreed.")
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    # what Generate LoRA knew has come along
    assert metadata["ss_base_model_version"] == "synthetic_base" and metadata["difflora.num_photos"] == "4"
    strength = load_checkpoint(EMBEDDED_CHECKPOINT).recommended.strength
    assert metadata["difflora.recommended_strength"] == f"{strength:g}"
    sidecar = json.loads(path.with_suffix(".metadata.json").read_text(encoding="utf-8"))
    assert sidecar["model_name"] == "Ann" and sidecar["modelDescription"] == "She agreed."


@pytest.mark.parametrize(
    ("style", "key"),
    [
        ("kohya", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight"),
        ("kohya_sgm", "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight"),
        ("diffusion_model", "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_up.weight"),
        ("diffusers", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"),
        ("peft", "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"),
    ],
)
def test_key_styles(server, style, key):
    path = saved(server, saving(f"styles/{style}", key_style=style, dtype="fp32", sidecar=False))
    assert load_file(path)[key].dtype == torch.float32
    assert (path.parent / "adapter_config.json").exists() == (style == "peft")
    if style == "peft":
        assert path.relative_to(server.base) == Path(
            "models/loras/styles/peft_00001_/adapter_model.safetensors"
        )
    if style not in ("diffusers", "peft"):  # those that ComfyUI loads
        graph = {**prompts.plain(), "load": core_loader(os.path.join("styles", path.name))}
        graph["sampler"]["inputs"]["model"] = ["load", 0]
        expected = prompts.pictures(server, prompts.applied(1.0))
        np.testing.assert_array_equal(prompts.pictures(server, graph), expected)


def test_rank_dtype_and_block_weights_are_baked_in(server):
    whole = Lora.load(saved(server, saving("baked/whole")))
    baked = saved(server, saving("baked/small", rank=2, dtype="bf16", block_weights="OUT=0.5"))
    tensors = load_file(baked)
    assert {t.dtype for key, t in tensors.items() if "alpha" not in key} == {torch.bfloat16}
    small = Lora.load(baked)
    assert small.layout.rank == 2
    name = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v"
    before = 0.5 * whole.layout.scale * whole.up[name] @ whole.down[name]
    singular = torch.linalg.svdvals(before)
    after = small.layout.scale * small.up[name] @ small.down[name]
    torch.testing.assert_close(torch.linalg.svdvals(after)[:2], singular[:2], rtol=2e-2, atol=1e-3)


def test_folder_of_extra_model_paths(server):
    more = str(server.base / "more_loras")  # tests/nodes/conftest.py writes the extra_model_paths.yaml
    options = server.get("/object_info/DiffLoRASaveLora")["DiffLoRASaveLora"]["input"]["required"]["folder"]
    assert options[1]["options"] == ["models/loras", "more_loras", "output/loras"]
    assert saved(server, saving("anna", folder="more_loras")) == Path(more, "anna_00001_.safetensors")
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert "anna_00001_.safetensors" in listed


@pytest.mark.parametrize(
    "name", ["../anna", "people/../../anna", "/tmp/anna", "C:\\anna", "people\\..\\..\\anna", "", " ", "a?b"]
)
def test_name_that_leaves_the_folder_is_refused(server, name):
    before = set(server.base.rglob("*anna*"))
    with pytest.raises(ExecutionFailed, match=r"give a relative path without \.\."):
        server.run(saving(name))
    assert set(server.base.rglob("*anna*")) == before and not Path("/tmp/anna_00001_.safetensors").exists()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"rank": 1000}, "rank 1000 is not in 1"),
        ({"folder": "models/checkpoints"}, r"is not a LoRA folder|not in list"),
        ({"key_style": "most"}, r"unknown key style|not in list"),
        ({"dtype": "fp4"}, r"unknown dtype|not in list"),
        ({"block_weights": "OUT01"}, "is not a number"),
    ],
)
def test_bad_settings_are_one_clear_error_and_leave_no_file(server, inputs, words):
    with pytest.raises(ExecutionFailed, match=words):
        server.run(saving("bad/anna", **inputs))
    assert not list((server.base / "models" / "loras").glob("bad/*.*"))


@pytest.mark.parametrize(
    ("kind", "words"), [("half", "missing keys"), ("nan", "finite"), ("empty", "nothing")]
)
def test_damaged_lora_is_refused(server, kind, words):
    graph = saving("bad/anna", lora=["wrong", 0])
    graph["wrong"] = prompts.node("TestLora", kind=kind, lora=["lora", 0])
    with pytest.raises(ExecutionFailed, match=words):
        server.run(graph)
