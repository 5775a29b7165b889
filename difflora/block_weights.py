"""How much a LoRA does in each block of the U-Net: presets, and what users type.

Blocks are called as block-weight nodes call them (`unet_names.block_label`): BASE, IN01.., M00, OUT00... Two
ways to write weights are read, both widespread:

- by name: `OUT01=0, IN=0.5`; IN and OUT stand for all blocks of that half, ALL for every block, and what is
  written later wins;
- by position: `1,0,0,0.5,1,...`, a number for each block in which the LoRA has modules, in the order down,
  middle, up; one more number in front is for BASE (the notation of sd-webui-lora-block-weight and of Inspire
  Pack; 17 numbers for attention LoRAs of Stable Diffusion 1.5, 12 for XL). A preset's name may stand before
  it: `MIDD:1,0,...`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor

from .errors import LayoutError
from .layout import listing
from .lora import Lora, LoraTensors, lora_from_state_dict
from .lora_edit import scale_blocks
from .unet_names import BLOCK, MIDDLE_LABEL, REST_LABEL, block_label, layers_per_block

ALL = "all"
NAMED_WEIGHT = r"([A-Za-z]+\d*)\s*=\s*(\S+)"
GROUPS = ("IN", "OUT")
TEXT_ENCODER_PREFIXES = ("lora_te", "text_encoder")

Blocks = Mapping[str, bool]
"""Label of each block in which a LoRA has modules -> whether it is an inner one: at the lowest resolution."""


def blocks_of(names: Collection[str]) -> dict[str, bool]:
    """Blocks in which a LoRA has modules, in the order down, middle, up.

    Args:
        names: diffusers module paths.

    Returns:
        Label -> whether the block is the middle one or on the lowest level of its half that the LoRA touches.

    Raises:
        LayoutError: not the modules of a Stable Diffusion U-Net.
    """
    layers = layers_per_block(names)
    labels = {name: block_label(name, layers) for name in names}
    levels = {name: (match[1], int(match[2])) for name in names if (match := re.fullmatch(BLOCK, name))}
    down = [level for half, level in levels.values() if half == "down_blocks"]
    up = [level for half, level in levels.values() if half == "up_blocks"]
    lowest = {("down_blocks", max(down, default=0)), ("up_blocks", min(up, default=0))}
    inner = {labels[name] for name in names if levels.get(name) in lowest} | {MIDDLE_LABEL}
    return {label: label in inner for label in sorted(set(labels.values()), key=_order)}


def _order(label: str) -> tuple[int, str]:
    """BASE, IN.., M00, OUT.."""
    return (label != REST_LABEL) + (label == MIDDLE_LABEL) + 2 * label.startswith("OUT"), label


def _off(blocks: Blocks, switched_off: Callable[[str, bool], bool]) -> dict[str, float]:
    in_unet = {label: inner for label, inner in blocks.items() if label != REST_LABEL}
    return {label: 0.0 for label, inner in in_unet.items() if switched_off(label, inner)}


# Halves and levels exist in every U-Net. What the two blocks of XL draw: InstantStyle (arXiv 2404.02733) and
# B-LoRA (arXiv 2403.14572); there are no such findings for other base models.
PRESETS: Mapping[str, Callable[[Blocks], dict[str, float]]] = {
    ALL: lambda blocks: {},
    "inner blocks only": lambda blocks: _off(blocks, lambda _, inner: not inner),
    "outer blocks only": lambda blocks: _off(blocks, lambda _, inner: inner),
    "down half only (IN)": lambda blocks: _off(blocks, lambda label, _: not label.startswith("IN")),
    "up half only (OUT)": lambda blocks: _off(blocks, lambda label, _: not label.startswith("OUT")),
    "SDXL: style off (OUT01)": lambda blocks: {"OUT01": 0.0},
    "SDXL: layout off (IN08)": lambda blocks: {"IN08": 0.0},
    "SDXL: style only (OUT01)": lambda blocks: _off(blocks, lambda label, _: label != "OUT01"),
}
XL_BLOCKS = ("IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{number:02d}" for number in range(6)))


def preset_weights(preset: str, names: Collection[str]) -> dict[str, float]:
    """Weights of a preset for a LoRA: block -> factor, 1 for blocks that are not named.

    Args:
        preset: a name of `PRESETS`.
        names: diffusers module paths of the LoRA.

    Raises:
        LayoutError: no such preset, or one that belongs to another base model.
    """
    if preset not in PRESETS:
        raise LayoutError(f"unknown block preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if preset == ALL:
        return {}  # whatever the LoRA is
    blocks = blocks_of(names)
    if preset.startswith("SDXL") and not blocks.keys() <= {*XL_BLOCKS, REST_LABEL}:
        raise LayoutError(
            f"the preset {preset!r} is for SDXL, but this LoRA has the blocks {listing(blocks, 30)}: choose "
            "another preset, or type block weights"
        )
    return {label: weight for label, weight in PRESETS[preset](blocks).items() if label in blocks}


def read_block_weights(text: str, names: Collection[str]) -> dict[str, float]:
    """Weights as typed, in either notation of the module's head: block -> factor.

    Args:
        text: not empty.
        names: diffusers module paths of the LoRA that they are for.

    Raises:
        LayoutError: neither notation, or not as many numbers as the LoRA has blocks.
    """
    blocks = list(blocks_of(names))
    entries = [part for part in re.split(r"[,;\n]+", re.sub(r"^\s*\w+\s*:", "", text)) if part.strip()]
    if all("=" in entry for entry in entries):
        return _by_name(entries, blocks)
    numbers = [_number(entry) for entry in entries]
    in_unet = [label for label in blocks if label != REST_LABEL]
    for labels in (in_unet, [REST_LABEL, *in_unet]):
        if len(numbers) == len(labels):
            return {label: n for label, n in zip(labels, numbers, strict=True) if label in blocks}
    raise LayoutError(
        f"{len(numbers)} block weights were given, but this LoRA has {len(in_unet)} blocks "
        f"({', '.join(in_unet)}): give a number for each, one more in front for {REST_LABEL}, or name them "
        f"as in {in_unet[0] if in_unet else REST_LABEL}=0.5"
    )


def _by_name(entries: Iterable[str], blocks: Collection[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for entry in entries:
        if (match := re.fullmatch(NAMED_WEIGHT, entry.strip())) is None:
            raise LayoutError(f"block weight {entry.strip()!r} is not like OUT01=0.5: write BLOCK=number")
        label, weight = match[1].upper(), _number(match[2])
        chosen = list(blocks) if label == "ALL" else [label]
        if label in GROUPS:
            chosen = [block for block in blocks if block.startswith(label)] or [label]
        weights.update(dict.fromkeys(chosen, weight))
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise LayoutError(
            f"block weight {text.strip()!r} is not a number: write OUT01=0.5, or numbers with commas between"
        ) from error


def weigh_blocks(lora: Lora, preset: str = ALL, text: str = "") -> Lora:
    """The LoRA with block weights multiplied in; typed weights take the place of the preset.

    Args:
        lora: of a Stable Diffusion U-Net.
        preset: a name of `PRESETS`.
        text: as for `read_block_weights`; empty for the preset.

    Raises:
        LayoutError: see `preset_weights`, `read_block_weights` and `lora_edit.scale_blocks`.
    """
    weights = read_block_weights(text, lora.up) if text.strip() else preset_weights(preset, lora.up)
    return scale_blocks(lora, weights) if weights else lora


def weigh_tensors(tensors: Mapping[str, Tensor], preset: str = ALL, text: str = "") -> Mapping[str, Tensor]:
    """As `weigh_blocks`, for the tensors of a file in any key style; text encoders stay as they are.

    Args:
        tensors: key -> tensor.
        preset: a name of `PRESETS`.
        text: as for `read_block_weights`; empty for the preset.

    Returns:
        The same tensors if there is nothing to multiply, else kohya-keyed ones in the old ones' dtype.

    Raises:
        LayoutError: as `weigh_blocks`; or not a LoRA of a U-Net.
    """
    if not text.strip() and preset == ALL:
        return tensors
    text_encoder = {key: t for key, t in tensors.items() if key.startswith(TEXT_ENCODER_PREFIXES)}
    unet = {key: t for key, t in tensors.items() if key not in text_encoder} if text_encoder else tensors
    weighed = weigh_blocks(lora_from_state_dict(unet), preset, text)
    dtype = next(tensor.dtype for tensor in unet.values() if tensor.ndim)  # alpha may have another one
    kept = weighed.state_dict(dtype)
    return LoraTensors({**kept, **text_encoder}, kept.metadata) if text_encoder else kept
