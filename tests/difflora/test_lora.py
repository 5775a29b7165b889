"""A LoRA file has the keys other tools read, comes back as it went, and says what does not fit."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from difflora.errors import CheckpointError, LayoutError
from difflora.files import load_safetensors
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import Lora, kohya_key, lora_from_state_dict, module_name
from difflora.patch import apply_lora


@pytest.fixture
def layout(tiny_base):
    return LoraLayout.from_model(tiny_base.denoiser, alpha=8)


@pytest.fixture
def lora(layout, random_weights):
    return Lora.from_flat(
        layout, random_weights(layout, 1)[0], init_shared_down(layout), {"modelspec.title": "Ann"}
    )


def test_flat_inverts_from_flat(tiny_base, random_weights):
    for train_down in (False, True):
        layout = LoraLayout.from_model(tiny_base.denoiser, train_down=train_down)
        flat = random_weights(layout, 1)[0]
        down = None if train_down else init_shared_down(layout)
        assert torch.equal(Lora.from_flat(layout, flat, down).flat(), flat)


def test_kohya_keys_of_stable_diffusion_1_5():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)  # the class's defaults are SD 1.5's
    layout = LoraLayout.from_model(unet)
    keys = [kohya_key(module.name) for module in layout.modules]
    assert (
        len(keys) == 16 * 10
    )  # 16 transformer blocks; kohya's 192 U-Net modules less 2 x 16 proj_in / proj_out
    # the example key of ComfyUI's and kohya's loaders
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q" in keys
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in keys
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj" in keys
    assert [module_name(key) for key in keys] == [module.name for module in layout.modules]
    assert (
        module_name("lora_unet_down_blocks_0_resnets_1_time_emb_proj")
        == "down_blocks.0.resnets.1.time_emb_proj"
    )


def test_file_round_trip(tmp_path, lora):
    path = lora.save(tmp_path / "ann.safetensors")
    loaded = Lora.load(path)
    assert loaded.layout == lora.layout
    for name in lora.up:
        assert torch.equal(loaded.up[name], lora.up[name].half().float())
        assert torch.equal(loaded.down[name], lora.down[name].half().float())
    exact = Lora.load(lora.save(tmp_path / "exact.safetensors", dtype=torch.float32), lora.layout)
    assert torch.equal(exact.flat(), lora.flat())
    tensors, metadata = load_safetensors(path)
    key = kohya_key(lora.layout.modules[0].name)
    assert {k for k in tensors if k.startswith(f"{key}.")} == {
        f"{key}.lora_down.weight",
        f"{key}.lora_up.weight",
        f"{key}.alpha",
    }
    assert tensors[f"{key}.alpha"].shape == ()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert metadata["modelspec.title"] == "Ann"
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lora", "4")
    assert float(metadata["ss_network_alpha"]) == 8
    assert metadata["difflora.layout_fingerprint"] == lora.layout.fingerprint


def test_foreign_file_without_our_metadata(tmp_path, lora):
    save_file(lora.state_dict(torch.float32), tmp_path / "foreign.safetensors")
    foreign = Lora.load(tmp_path / "foreign.safetensors")
    assert {m.name for m in foreign.layout.modules} == {m.name for m in lora.layout.modules}
    assert (foreign.layout.alpha, foreign.layout.rank, foreign.layout.train_down) == (8, 4, True)
    assert all(torch.equal(foreign.up[name], lora.up[name]) for name in lora.up)


def test_missing_unexpected_and_misshapen_keys(lora):
    tensors = lora.state_dict()
    key = kohya_key(lora.layout.modules[0].name)
    with pytest.raises(LayoutError, match=rf"1 missing keys \({key}.alpha\)"):
        lora_from_state_dict({k: v for k, v in tensors.items() if k != f"{key}.alpha"}, lora.layout)
    with pytest.raises(LayoutError, match=r"1 unexpected keys \(lora_te_x.alpha\)"):
        lora_from_state_dict({**tensors, "lora_te_x.alpha": torch.tensor(1.0)}, lora.layout)
    with pytest.raises(LayoutError, match="has shape"):
        lora_from_state_dict({**tensors, f"{key}.lora_up.weight": torch.zeros(3, 4)}, lora.layout)
    with pytest.raises(LayoutError, match="alpha"):
        lora_from_state_dict({**tensors, f"{key}.alpha": torch.tensor(1.0)}, lora.layout)
    with pytest.raises(LayoutError, match="no lora_unet_"):
        lora_from_state_dict({"base_model.model.x.lora_A.weight": torch.zeros(4, 4)})


def test_numbers_that_are_not_finite_or_do_not_fit_the_dtype(lora):
    name = lora.layout.modules[0].name
    with pytest.raises(LayoutError, match="finite"):
        Lora(lora.layout, lora.down, {**lora.up, name: lora.up[name] / 0})
    large = Lora(lora.layout, lora.down, {**lora.up, name: torch.full_like(lora.up[name], 1e6)})
    with pytest.raises(LayoutError, match=r"too large for torch\.float16"):
        large.state_dict()
    assert large.state_dict(torch.float32)[f"{kohya_key(name)}.lora_up.weight"].max() == 1e6


def test_damaged_files(tmp_path, lora):
    path = lora.save(tmp_path / "ann.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Lora.load(path)
    torch.save(lora.state_dict(), tmp_path / "ann.pt")
    with pytest.raises(CheckpointError, match="pickle"):
        Lora.load(tmp_path / "ann.pt")


def test_diffusers_draws_the_same_with_the_file(tmp_path, tiny_base, lora, random_inputs):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    path = lora.save(tmp_path / "ann.safetensors", dtype=torch.float32)
    tensors, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(path)
    reference, inputs = copy.deepcopy(tiny_base.denoiser), random_inputs(2)
    diffusers.StableDiffusionPipeline.load_lora_into_unet(tensors, alphas, reference)
    with torch.no_grad(), apply_lora(tiny_base.denoiser, Lora.load(path)):
        difference = tiny_base.denoiser(*inputs).sample - reference(*inputs).sample
    assert difference.abs().max() < 1e-4
