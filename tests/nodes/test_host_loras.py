"""ComfyUI reads our files completely: every key has its place in the full U-Nets, and the sums are ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflora.layout import ATTENTION, ATTENTION_AND_FEED_FORWARD, LoraLayout
from difflora.lora import Lora

sys.path.insert(0, str(Path(__file__).parent))
from in_host_loras import STRENGTH, WEIGHT

pytestmark = pytest.mark.host

# diffusers module -> weight of ComfyUI's model, by hand
SDXL_TARGETS = {
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": "diffusion_model.input_blocks.4.1"
    ".transformer_blocks.1.attn2.to_k.weight",
    "mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0": "diffusion_model.middle_block.1"
    ".transformer_blocks.9.attn1.to_out.0.weight",
    "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q": "diffusion_model.output_blocks.5.1"
    ".transformer_blocks.0.attn1.to_q.weight",
}
SD_1_5_TARGETS = {
    "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj": "diffusion_model.input_blocks.2.1"
    ".transformer_blocks.0.ff.net.0.proj.weight",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v": "diffusion_model.output_blocks.11.1"
    ".transformer_blocks.0.attn2.to_v.weight",
}
TARGETS = {"sdxl": SDXL_TARGETS, "sd15": SD_1_5_TARGETS}
# style -> the dtype that it is tried with, and its rounding error relative to the largest change
STYLES = {
    "kohya": (torch.float16, 2e-3),
    "kohya_sgm": (torch.bfloat16, 2e-2),
    "diffusion_model": (torch.float32, 1e-6),
}


@pytest.fixture(scope="module")
def loras(full_unets):
    """Random LoRAs, alpha not the rank: all attention projections of SDXL, feed-forward too in SD 1.5."""
    targets = {"sdxl": ATTENTION, "sd15": ATTENTION_AND_FEED_FORWARD}
    made = {}
    for name, unet in full_unets.items():
        layout = LoraLayout.from_model(unet, targets[name], rank=4, alpha=6.0, train_down=True)
        flat = 0.1 * torch.randn(layout.num_parameters, generator=torch.Generator().manual_seed(1))
        made[name] = Lora.from_flat(layout, flat, None)
    return made


@pytest.fixture(scope="module")
def work(comfyui, full_unets, loras, tmp_path_factory):
    """The folder after ComfyUI has read every file in it."""
    work = tmp_path_factory.mktemp("loras")
    for name, unet in full_unets.items():
        shapes = {key: list(weight.shape) for key, weight in unet.state_dict().items()}
        (work / f"{name}.json").write_text(json.dumps(shapes))
        for style, (dtype, _) in STYLES.items():
            loras[name].save(work / f"{name}.{style}.safetensors", dtype=dtype, key_style=style)
    wanted = {name: list(targets.values()) for name, targets in TARGETS.items()}
    (work / "targets.json").write_text(json.dumps(wanted))
    comfyui.run_script(Path(__file__).parent / "in_host_loras.py", work)
    return work


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "model", "modules"), [("sdxl", "SDXL", 560), ("sd15", "BaseModel", 160)])
def test_every_key_finds_a_weight_of_its_shape(work, name, model, modules, style):
    report = json.loads((work / "report.json").read_text())[f"{name}.{style}.safetensors"]
    assert report == {"model": model, "modules": modules, "misshapen": [], "complaints": []}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", TARGETS)
def test_patched_weights_by_hand(work, loras, name, style):
    patched, lora = load_file(work / "patched.safetensors"), loras[name]
    for module, weight in TARGETS[name].items():
        change = STRENGTH * (6 / 4) * lora.up[module] @ lora.down[module]  # (out, in)
        found = patched[f"{name}.{style}.safetensors:{weight}"] - WEIGHT
        tolerance = STYLES[style][1] * change.abs().max().item()
        torch.testing.assert_close(found, change, atol=tolerance, rtol=0)
