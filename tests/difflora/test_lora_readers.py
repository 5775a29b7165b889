"""Our files in the hands of other tools: diffusers and peft. ComfyUI is in tests/nodes/test_host_loras.py."""

import copy

import pytest
import torch

from difflora.errors import CheckpointError
from difflora.files import load_safetensors, save_safetensors
from difflora.layout import LoraLayout
from difflora.lora import Lora

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


NARROW = {
    "sample_size": 4,
    "block_out_channels": (8, 16, 16),
    "transformer_layers_per_block": (1, 2, 1),
    "attention_head_dim": (2, 4, 4),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}


@pytest.fixture(scope="module")
def unet(sdxl_config):
    """Stable Diffusion XL's U-Net, narrow: the same levels and layers, one transformer block for ten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(**{**sdxl_config, **NARROW}).requires_grad_(False)


@pytest.fixture(scope="module")
def lora(unet):
    layout = LoraLayout.from_model(unet, alpha=6, train_down=True)
    flat = 0.2 * torch.randn(layout.num_parameters, generator=torch.Generator().manual_seed(1))
    return Lora.from_flat(layout, flat, None)


def check_adapter(model, lora, adapter):
    """Every module of the LoRA, and no other, changes as W + scale * up @ down says."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert layers.keys() == lora.up.keys()
    for name, layer in layers.items():
        expected = 6 / 4 * lora.up[name] @ lora.down[name]
        torch.testing.assert_close(layer.get_delta_weight(adapter), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("style", ["kohya", "kohya_sgm", "diffusers"])
def test_diffusers_pipeline_loads_the_file(tmp_path, unet, lora, style):
    path = lora.save(tmp_path / "ann.safetensors", dtype=torch.float32, key_style=style)
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    pipeline = diffusers.StableDiffusionXLPipeline(unet=copy.deepcopy(unet), **dict.fromkeys(parts))
    pipeline.load_lora_weights(path, adapter_name="ann")
    check_adapter(pipeline.unet, lora, "ann")


def test_peft_loads_the_folder(tmp_path, unet, lora):
    lora.save(tmp_path / "ann" / "adapter_model.safetensors", dtype=torch.float32, key_style="peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path / "ann")
    check_adapter(model.get_base_model(), lora, "default")


@pytest.mark.parametrize("alpha_in", ["header", "header of a pipeline", "folder"])
def test_files_that_peft_and_diffusers_write_are_read(tmp_path, unet, lora, alpha_in):
    special, *rest = lora.up
    config = peft.LoraConfig(r=4, lora_alpha=5, target_modules=[special, *rest], alpha_pattern={special: 10})
    if alpha_in == "folder":
        model = peft.get_peft_model(copy.deepcopy(unet), config)
        model.save_pretrained(tmp_path)
        path, layers = tmp_path / "adapter_model.safetensors", model.get_base_model()
    else:
        layers = copy.deepcopy(unet)
        layers.add_adapter(config)
        path = tmp_path / "pytorch_lora_weights.safetensors"
    for name in lora.up:  # peft starts lora_B at zero
        layer = layers.get_submodule(name)
        layer.lora_A.default.weight.data.copy_(lora.down[name])
        layer.lora_B.default.weight.data.copy_(lora.up[name])
    if alpha_in == "folder":
        model.save_pretrained(tmp_path)
    elif alpha_in == "header":
        layers.save_lora_adapter(tmp_path)
    else:
        diffusers.StableDiffusionXLPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=peft.get_peft_model_state_dict(layers),
            unet_lora_adapter_metadata=layers.peft_config["default"].to_dict(),
        )
    loaded = Lora.load(path)
    assert loaded.up.keys() == lora.up.keys()
    for name in lora.up:
        expected = (10 if name == special else 5) / 4 * lora.up[name] @ lora.down[name]
        change = loaded.layout.scale * loaded.up[name] @ loaded.down[name]
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)


def test_peft_file_without_its_alpha(tmp_path, lora):
    path = lora.save(tmp_path / "ann" / "adapter_model.safetensors", torch.float32, "peft")
    with pytest.raises(CheckpointError, match="its own for each adapter"):
        lora.save(tmp_path / "ann.safetensors", key_style="peft")
    (path.parent / "adapter_config.json").unlink()
    assert Lora.load(path).layout == lora.layout  # our own header says it too
    tensors, _ = load_safetensors(path)
    save_safetensors(path, tensors)
    with pytest.raises(CheckpointError, match=r"put the adapter_config\.json"):
        Lora.load(path)
    assert Lora.load(path, lora.layout).layout == lora.layout
    (path.parent / "adapter_config.json").write_text('{"lora_alpha": 6, "use_rslora": true}')
    assert Lora.load(path).layout.scale == 6 / 4**0.5
    for damaged, message in (("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "no lora_alpha")):
        (path.parent / "adapter_config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            Lora.load(path)
