"""Every style's keys, written out by hand, and read back."""

import pytest
import torch

from difflora.errors import LayoutError
from difflora.layout import LoraLayout
from difflora.lora_keys import STYLES, kohya_key, module_keys, module_name, module_tensors, style_of

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0"
BY_HAND = {
    "kohya": {
        TO_Q: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        OUT: "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_attn2_to_out_0",
    },
    "kohya_sgm": {
        TO_Q: "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        OUT: "lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_out_0",
    },
    "diffusion_model": {
        TO_Q: "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        OUT: "diffusion_model.output_blocks.2.1.transformer_blocks.9.attn2.to_out.0",
    },
    "diffusers": {TO_Q: f"unet.{TO_Q}", OUT: f"unet.{OUT}"},
    "peft": {TO_Q: f"base_model.model.{TO_Q}", OUT: f"base_model.model.{OUT}"},
}


@pytest.mark.parametrize("style", STYLES)
def test_keys_by_hand_and_back(style):
    assert module_keys((TO_Q, OUT), STYLES[style]) == BY_HAND[style]
    assert {module_name(key): key for key in BY_HAND[style].values()} == BY_HAND[style]


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
@pytest.mark.parametrize("style", STYLES)
def test_every_linear_layer_comes_back(style, model, full_unets):
    modules = full_unets[model].named_modules()
    linear = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
    keys = module_keys(linear, STYLES[style])
    assert len(set(keys.values())) == len(linear)
    assert {name: module_name(key) for name, key in keys.items()} == {name: name for name in linear}


def test_kohya_keys_of_stable_diffusion_1_5(full_unets):
    layout = LoraLayout.from_model(full_unets["sd15"])
    keys = [kohya_key(module.name) for module in layout.modules]
    # 16 transformer blocks; kohya's 192 U-Net modules less 2 x 16 proj_in / proj_out
    assert len(keys) == 16 * 10
    # the example key of ComfyUI's and kohya's loaders
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q" in keys
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in keys
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj" in keys
    assert [module_name(key) for key in keys] == [module.name for module in layout.modules]
    assert (
        module_name("lora_unet_down_blocks_0_resnets_1_time_emb_proj")
        == "down_blocks.0.resnets.1.time_emb_proj"
    )


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
        ("{}.lora_A.weight", "{}.lora_B.weight"),
        ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight"),
    ],
)
def test_other_spellings_are_read(down, up):
    tensors = {down.format(TO_Q): torch.zeros(2, 3), up.format(TO_Q): torch.zeros(4, 2)}
    found = module_tensors(tensors)
    assert found[TO_Q]["lora_down"].shape == (2, 3)
    assert found[TO_Q]["lora_up"].shape == (4, 2)


def test_what_is_no_lora_of_a_unet():
    pair = {f"unet.{TO_Q}.lora_A.weight": torch.zeros(1, 1), f"unet.{TO_Q}.lora_B.weight": torch.zeros(1, 1)}
    with pytest.raises(LayoutError, match=r"no lora_unet_\*.*but model\.weight"):
        module_tensors({"model.weight": torch.zeros(1)})
    with pytest.raises(LayoutError, match=r"1 missing keys \(unet\.x\.lora_up\.weight\)"):
        module_tensors({"unet.x.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(LayoutError, match=r"unexpected keys \(lora_te1_x\.alpha\) and text encoders are not"):
        module_tensors({**pair, "lora_te1_x.alpha": torch.zeros(())})
    with pytest.raises(LayoutError, match=r"unexpected keys \(unet\..*lora_magnitude_vector\)"):  # DoRA
        module_tensors({**pair, f"unet.{TO_Q}.lora_magnitude_vector": torch.zeros(1)})
    with pytest.raises(LayoutError, match="unexpected keys"):  # the same module under two names
        module_tensors({**pair, f"{TO_Q}.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(LayoutError, match="unknown key style 'a1111': choose one of kohya,"):
        style_of("a1111")
