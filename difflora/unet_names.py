"""Layers of a Stable Diffusion U-Net under both of their names, and the numbers of its blocks.

diffusers counts levels and layers (`down_blocks.1.attentions.0`); the original code, which ComfyUI, kohya's
SDXL scripts and block-weight nodes follow, numbers the blocks of each half in one row (`input_blocks.4.1`).
With L layers per level (`UNetModel` of Rombach et al. 2022, arXiv 2112.10752):

- going down, block 0 is the first convolution, and a level has L layers and one step down:
  level x, layer i is `input_blocks.{1 + (L + 1) x + i}`;
- going up, a level has L + 1 layers, one for each block that it is joined with:
  level x, layer i is `output_blocks.{(L + 1) x + i}`;
- within a block, 0 is the ResNet layer and 1 the attention layer.

Only linear layers have a translation, because only they can carry the LoRAs of this package.
"""

import re
from collections.abc import Iterable

from .errors import LayoutError

LAYERS_PER_BLOCK = 2  # of Stable Diffusion 1, 2 and XL
EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
EMBEDDINGS_BACK = {original: name for name, original in EMBEDDINGS.items()}
RESNET_LINEAR = ("time_emb_proj", "emb_layers.1")  # the only linear layer of a ResNet block
MIDDLE = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}  # (kind, layer) -> part
MIDDLE_BACK = {part: layer for layer, part in MIDDLE.items()}
BLOCK = r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)"
MIDDLE_BLOCK = r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)"
ORIGINAL_BLOCK = r"(input_blocks|output_blocks)\.(\d+)\.([01])\.(.+)"
ORIGINAL_MIDDLE_BLOCK = r"middle_block\.([012])\.(.+)"
ORIGINAL_ROOTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb")
LABELS = {"input_blocks": "IN", "output_blocks": "OUT"}
MIDDLE_LABEL = "M00"
REST_LABEL = "BASE"


def layers_per_block(names: Iterable[str]) -> int:
    """L of the U-Net that these modules belong to, 2 unless both halves of the U-Net say something else.

    Args:
        names: diffusers module paths of a LoRA. It need not have all layers, so one half proves nothing.
    """
    layers = {"down_blocks": 0, "up_blocks": 0}
    for name in names:
        if match := re.fullmatch(BLOCK, name):
            layers[match[1]] = max(layers[match[1]], int(match[4]) + 1)
    down, up = layers["down_blocks"], layers["up_blocks"]
    return down if down > 0 and up == down + 1 else LAYERS_PER_BLOCK


def original_name(name: str, layers: int = LAYERS_PER_BLOCK) -> str:
    """`down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`.

    Args:
        name: diffusers module path of a linear layer.
        layers: L, layers per level.

    Raises:
        LayoutError: not a linear layer of such a U-Net.
    """
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    if match := re.fullmatch(MIDDLE_BLOCK, name):
        kind, layer, rest = match[1], int(match[2]), match[3]
        if (kind, layer) in MIDDLE:
            return f"middle_block.{MIDDLE[kind, layer]}.{_rest(name, kind, rest, *RESNET_LINEAR)}"
    if match := re.fullmatch(BLOCK, name):
        going_down, level, kind, layer = match[1] == "down_blocks", int(match[2]), match[3], int(match[4])
        if layer < (layers if going_down else layers + 1):
            number = (layers + 1) * level + layer + (1 if going_down else 0)
            half, part = "input_blocks" if going_down else "output_blocks", int(kind == "attentions")
            return f"{half}.{number}.{part}.{_rest(name, kind, match[5], *RESNET_LINEAR)}"
    raise _unknown(name, layers)


def diffusers_name(name: str, layers: int = LAYERS_PER_BLOCK) -> str:
    """Inverse of `original_name`.

    Raises:
        LayoutError: not a linear layer of such a U-Net.
    """
    if name in EMBEDDINGS_BACK:
        return EMBEDDINGS_BACK[name]
    if match := re.fullmatch(ORIGINAL_MIDDLE_BLOCK, name):
        kind, layer = MIDDLE_BACK[int(match[1])]
        return f"mid_block.{kind}.{layer}.{_rest(name, kind, match[2], *reversed(RESNET_LINEAR))}"
    if match := re.fullmatch(ORIGINAL_BLOCK, name):
        going_down = match[1] == "input_blocks"
        level, layer = divmod(int(match[2]) - (1 if going_down else 0), layers + 1)
        if level >= 0 and not (going_down and layer == layers):  # block 0, and the step down: convolutions
            half, kind = (
                "down_blocks" if going_down else "up_blocks",
                ("resnets", "attentions")[int(match[3])],
            )
            rest = _rest(name, kind, match[4], *reversed(RESNET_LINEAR))
            return f"{half}.{level}.{kind}.{layer}.{rest}"
    raise _unknown(name, layers)


def block_label(name: str, layers: int = LAYERS_PER_BLOCK) -> str:
    """Block of a module as block-weight nodes call it: IN00.., M00, OUT00.., BASE for what is in no block.

    Args:
        name: diffusers module path of a linear layer.
        layers: L, layers per level.

    Raises:
        LayoutError: not a linear layer of such a U-Net.
    """
    root, number = original_name(name, layers).split(".")[:2]
    if root == "middle_block":
        return MIDDLE_LABEL
    return f"{LABELS[root]}{int(number):02d}" if root in LABELS else REST_LABEL


def _rest(name: str, kind: str, rest: str, from_linear: str, to_linear: str) -> str:
    """Path within a layer: attention layers have one name, ResNet layers two."""
    if kind == "attentions":
        return rest
    if rest != from_linear:
        raise LayoutError(f"{name} is not a linear layer: only LoRAs of linear layers are supported")
    return to_linear


def _unknown(name: str, layers: int) -> LayoutError:
    return LayoutError(
        f"{name} is not a linear layer of a Stable Diffusion U-Net with {layers} layers per level: this LoRA "
        "belongs to another kind of base model, for which original block names and numbers are not known here"
    )
