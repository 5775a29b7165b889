"""Families are told apart by the shapes that are published with them, and a misfit is said in their names."""

import pytest
import torch

from difflora.errors import LayoutError
from difflora.layout import LoraLayout, ModuleSpec
from difflora.model_family import adapted_weights, family_of, layout_family
from difflora.unet_names import original_name


def attention(block, width, prompts, blocks=1):
    """Shapes of one attention layer's query, key and value matrices."""
    return {
        f"{block}.transformer_blocks.{number}.{attn}.{projection}.weight": (
            width,
            prompts if attn == "attn2" and projection != "to_q" else width,
        )
        for number in range(blocks)
        for attn in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v")
    }


SD15 = attention("down_blocks.0.attentions.0", 320, 768) | attention("mid_block.attentions.0", 1280, 768)
SD21 = attention("down_blocks.0.attentions.0", 320, 1024) | attention("mid_block.attentions.0", 1280, 1024)
SDXL = attention("down_blocks.1.attentions.0", 640, 2048, 2) | attention(
    "mid_block.attentions.0", 1280, 2048, 10
)
OURS = attention("down_blocks.0.attentions.0", 64, 96)


def layout(shapes):
    return LoraLayout(
        tuple(ModuleSpec(name.removesuffix(".weight"), s[1], s[0]) for name, s in shapes.items()), 4, 4.0
    )


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (SD15, "SD 1.x"),
        (SD21, "SD 2.x"),
        (SDXL, "SDXL"),
        (attention("down_blocks.1.attentions.0", 768, 1280, 4), "SDXL refiner"),
        (OURS, "a U-Net of widths 64 for prompts of width 96"),
        ({n: s for n, s in SD15.items() if ".attn1." in n}, "SD 1.x or SD 2.x"),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "no U-Net of Stable Diffusion"),
    ],
)
def test_families(shapes, name):
    assert family_of(shapes) == name
    assert family_of({f"model.diffusion_model.{key}": shape for key, shape in shapes.items()}) == name


def test_real_configurations_of_diffusers_are_recognised():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert family_of(shapes) == "SD 1.x"
    assert layout_family(LoraLayout.from_model(unet, ("attn2.to_v",), rank=1)) == "SD 1.x"


@pytest.mark.parametrize("prefix", ["", "unet.", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("original", [False, True])
def test_weights_are_found_under_every_name(prefix, original):
    own = layout(SD15)
    model = {
        f"{prefix}{original_name(m.name) if original else m.name}.weight": torch.empty(
            m.out_features, m.in_features, device="meta"
        )
        for m in own.modules
    }
    found = adapted_weights(own, {**model, "other.bias": torch.zeros(3)})
    assert list(found) == [m.name for m in own.modules]
    assert all(found[m.name] is weight for m, weight in zip(own.modules, model.values(), strict=True))


def test_another_family_is_refused_by_name():
    weights = {name: torch.empty(shape, device="meta") for name, shape in SD15.items()}
    with pytest.raises(LayoutError, match=r"for base-xl \(SDXL\), the model is SD 1\.x: nothing was patched"):
        adapted_weights(layout(SDXL), weights, "base-xl")
    with pytest.raises(LayoutError, match=r"for SD 2\.x, the model is SD 1\.x: .* 4 of 12 layers do not fit"):
        adapted_weights(layout(SD21), weights)  # the same names: only the prompts' keys and values differ
    with pytest.raises(LayoutError, match="widths 64 for prompts of width 96, the model is no U-Net"):
        adapted_weights(layout(OURS), {"double_blocks.0.weight": torch.zeros(2, 2)})
