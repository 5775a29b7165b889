"""Presets and typed weights name the right blocks of the real U-Nets, and do what `scale_blocks` does."""

import pytest
import torch

from difflora.block_weights import (
    ALL,
    PRESETS,
    XL_BLOCKS,
    blocks_of,
    preset_weights,
    read_block_weights,
    weigh_blocks,
    weigh_tensors,
)
from difflora.errors import LayoutError
from difflora.layout import ATTENTION, LoraLayout
from difflora.lora import Lora, LoraTensors
from difflora.lora_edit import scale_blocks

# Blocks with attention, as the lines for block-weight nodes have them (17 and 12 numbers with BASE)
SD15_BLOCKS = [*(f"IN0{n}" for n in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{n:02d}" for n in range(3, 12))]


@pytest.fixture(scope="module")
def names(full_unets):
    """Model -> modules of an attention LoRA."""
    return {
        name: [module.name for module in LoraLayout.from_model(unet, ATTENTION, rank=1).modules]
        for name, unet in full_unets.items()
    }


@pytest.fixture
def lora(tiny_base, random_weights):
    layout = LoraLayout.from_model(tiny_base.denoiser, rank=2, alpha=3.0, train_down=True)
    return Lora.from_flat(layout, random_weights(layout, 1)[0], None, {"modelspec.title": "Ann"})


def off(weights):
    assert set(weights.values()) <= {0.0}
    return set(weights)


def test_blocks_and_their_order(names):
    assert list(blocks_of(names["sdxl"])) == list(XL_BLOCKS)
    assert list(blocks_of(names["sd15"])) == SD15_BLOCKS
    inner = {label for label, is_inner in blocks_of(names["sdxl"]).items() if is_inner}
    assert inner == {"IN07", "IN08", "M00", "OUT00", "OUT01", "OUT02"}  # 1/4 of the latent's side


def test_presets_of_xl(names):
    weights = {preset: preset_weights(preset, names["sdxl"]) for preset in PRESETS}
    assert weights[ALL] == {}
    outer = {"IN04", "IN05", "OUT03", "OUT04", "OUT05"}
    assert off(weights["inner blocks only"]) == outer
    assert off(weights["outer blocks only"]) == set(XL_BLOCKS) - outer
    assert off(weights["down half only (IN)"]) == {"M00", *(b for b in XL_BLOCKS if b.startswith("OUT"))}
    assert off(weights["up half only (OUT)"]) == {"M00", *(b for b in XL_BLOCKS if b.startswith("IN"))}
    assert off(weights["SDXL: style off (OUT01)"]) == {"OUT01"}
    assert off(weights["SDXL: layout off (IN08)"]) == {"IN08"}
    assert off(weights["SDXL: style only (OUT01)"]) == set(XL_BLOCKS) - {"OUT01"}


def test_preset_of_another_base_model_is_refused(names):
    with pytest.raises(LayoutError, match=r"is for SDXL, but this LoRA has the blocks IN01"):
        preset_weights("SDXL: style off (OUT01)", names["sd15"])
    with pytest.raises(LayoutError, match="unknown block preset 'most'"):
        preset_weights("most", names["sd15"])


def test_typed_by_name(names):
    assert read_block_weights("out01=0.5; M00 = 2", names["sdxl"]) == {"OUT01": 0.5, "M00": 2.0}
    weights = read_block_weights("ALL=0, IN=-1,\nIN08=0.25", names["sdxl"])  # what comes later wins
    assert weights == {
        **dict.fromkeys(XL_BLOCKS, 0.0),
        **dict.fromkeys(("IN04", "IN05", "IN07"), -1.0),
        "IN08": 0.25,
    }


def test_typed_by_position(names):
    # the line MIDD of sd-webui-lora-block-weight, for Stable Diffusion 1.5
    weights = read_block_weights("MIDD:1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", names["sd15"])
    switched_off = {"IN01", "IN02", "IN04", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"}
    assert {label for label, weight in weights.items() if weight == 0} == switched_off
    assert read_block_weights(",".join("1" * 16), names["sd15"]) == dict.fromkeys(SD15_BLOCKS, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,0,1", r"3 block weights were given, but this LoRA has 11 blocks \(IN04, IN05, IN07"),
        ("OUT01:half", "'half' is not a number"),
        ("OUT01=half", "'half' is not a number"),
        ("OUT01=1, 0.5", "'OUT01=1' is not a number"),
        ("=1", "is not like OUT01=0.5"),
    ],
)
def test_nonsense_is_refused(names, text, words):
    with pytest.raises(LayoutError, match=words):
        read_block_weights(text, names["sdxl"])


def test_unknown_block_and_infinite_weight_are_refused(lora):
    with pytest.raises(LayoutError, match="no module in OUT11"):
        weigh_blocks(lora, text="OUT11=1")
    with pytest.raises(LayoutError, match="not a finite number"):
        weigh_blocks(lora, text="M00=nan")


def test_typed_weights_take_the_place_of_the_preset(lora):
    weighed = weigh_blocks(lora, "outer blocks only", "M00=0.5")
    assert torch.equal(weighed.flat(), scale_blocks(lora, {"M00": 0.5}).flat())
    assert not torch.equal(weighed.flat(), lora.flat())
    assert weigh_blocks(lora) is lora


def test_tensors_keep_dtype_metadata_and_text_encoder(lora):
    tensors = lora.state_dict(torch.bfloat16, "diffusion_model")
    assert weigh_tensors(tensors) is tensors
    weighed = weigh_tensors(tensors, text="ALL=0.5")  # exact in every dtype
    assert isinstance(weighed, LoraTensors) and weighed.metadata["modelspec.title"] == "Ann"
    expected = scale_blocks(lora, dict.fromkeys(blocks_of(lora.up), 0.5)).state_dict(torch.bfloat16)
    assert weighed.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensor.dtype == weighed[key].dtype and torch.equal(tensor, weighed[key])
    encoder = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.ones(2, 1)}
    both = weigh_tensors({**lora.state_dict(torch.bfloat16), **encoder}, text="ALL=0.5")
    assert both.keys() == expected.keys() | encoder.keys()
