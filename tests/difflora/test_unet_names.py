"""Names and block numbers, against ones written out by hand for Stable Diffusion 1.5, XL and one layer."""

import pytest

from difflora.errors import LayoutError
from difflora.layout import ATTENTION, LoraLayout
from difflora.unet_names import block_label, diffusers_name, layers_per_block, original_name

# by hand, from the original configurations and the tables of kohya's and ComfyUI's converters
STABLE_DIFFUSION_1_5 = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "IN01",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": "IN02",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "IN04",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q": "IN08",
    "down_blocks.3.resnets.1.time_emb_proj": "IN11",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": "M00",
    "up_blocks.0.resnets.2.time_emb_proj": "OUT02",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "OUT03",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q": "OUT11",
    "time_embedding.linear_1": "BASE",
}
XL = {
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0": "input_blocks.4.1.transformer_blocks.1"
    ".attn1.to_out.0",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2": "input_blocks.8.1.transformer_blocks.9"
    ".ff.net.2",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_k": "output_blocks.2.1.transformer_blocks.3"
    ".attn2.to_k",
    "up_blocks.1.attentions.0.proj_out": "output_blocks.3.1.proj_out",
    "down_blocks.0.resnets.1.time_emb_proj": "input_blocks.2.0.emb_layers.1",
    "up_blocks.2.resnets.2.time_emb_proj": "output_blocks.8.0.emb_layers.1",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
}
ONE_LAYER = {  # the embedded base model: two levels of one layer
    "down_blocks.1.attentions.0.proj_in": "input_blocks.3.1.proj_in",
    "up_blocks.0.attentions.1.proj_in": "output_blocks.1.1.proj_in",
    "up_blocks.1.attentions.0.proj_in": "output_blocks.2.1.proj_in",
}


def test_names_by_hand_and_back():
    for names, layers in ((XL, 2), (ONE_LAYER, 1)):
        assert {name: original_name(name, layers) for name in names} == names
        assert {diffusers_name(original, layers): original for original in names.values()} == names


def test_block_labels_by_hand():
    assert {name: block_label(name) for name in STABLE_DIFFUSION_1_5} == STABLE_DIFFUSION_1_5


# the blocks with attention, as the presets of block-weight nodes list them
PRESETS = {
    "sd15": "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    "sdxl": "IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
}


@pytest.mark.parametrize("model", PRESETS)
def test_blocks_with_attention(model, full_unets):
    names = [module.name for module in LoraLayout.from_model(full_unets[model], ATTENTION).modules]
    assert {block_label(name, layers_per_block(names)) for name in names} == set(PRESETS[model].split())


def test_layers_per_block():
    assert layers_per_block(ONE_LAYER) == 1
    assert layers_per_block(STABLE_DIFFUSION_1_5) == 2
    # a LoRA of two layers of one half only, as B-LoRA trains them, does not prove a U-Net of one layer
    assert layers_per_block(["up_blocks.0.attentions.0.proj_in", "up_blocks.0.attentions.1.proj_in"]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.0.attn.to_q",  # no U-Net
        "down_blocks.1.attentions.2.proj_in",  # a third layer
        "mid_block.attentions.1.proj_in",
        "up_blocks.0.resnets.0.conv1",  # not linear
        "conv_in",
    ],
)
def test_what_has_no_original_name(name):
    with pytest.raises(LayoutError, match="linear layer"):
        original_name(name)


@pytest.mark.parametrize(
    "name",
    ["input_blocks.0.0", "input_blocks.3.0.op", "input_blocks.0.1.proj_in", "output_blocks.2.0.in_layers.2"],
)
def test_what_has_no_diffusers_name(name):
    with pytest.raises(LayoutError, match="linear layer"):
        diffusers_name(name)
