"""Which family of Stable Diffusion weights belong to, told by names and shapes of their attention layers.

A LoRA of one family means nothing in another: names are missing, or shapes differ. Both are found before
anything is patched, and said in the families' names instead of a list of layers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .errors import LayoutError
from .layout import LoraLayout, listing
from .unet_names import layers_per_block, original_name

ATTENTION_WEIGHT = r"transformer_blocks\.(\d+)\.attn([12])\.(to_q|to_k|to_v)\.weight$"
PREFIXES = ("", "unet.", "diffusion_model.", "model.diffusion_model.")
"""What stands before a U-Net's names: diffusers, its pipelines, ComfyUI, checkpoints of a whole model."""


@dataclass(frozen=True)
class Family:
    """Sizes that all base models of a family share.

    Args:
        name: as users call it.
        prompt_width: numbers of a prompt token, that attn2.to_k and to_v read.
        widths: of the attention layers.
        depth: most transformer blocks in one attention layer.
    """

    name: str
    prompt_width: int
    widths: frozenset[int]
    depth: int


# The U-Net configurations that are published with the models.
FAMILIES = (
    Family("SD 1.x", 768, frozenset({320, 640, 1280}), 1),
    Family("SD 2.x", 1024, frozenset({320, 640, 1280}), 1),
    Family("SDXL", 2048, frozenset({640, 1280}), 10),
    Family("SDXL refiner", 1280, frozenset({768, 1536}), 4),
)


class Shaped(Protocol):
    """A tensor, or anything else that has a shape."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes."""


Weight = TypeVar("Weight", bound=Shaped)


def family_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """Name the family, or describe what is unknown.

    Args:
        shapes: name of a weight -> its shape, of a whole model or of the layers that a LoRA patches, in
            diffusers' or the original names, with or without a prefix.

    Returns:
        E.g. "SDXL"; "SD 1.x or SD 2.x" where the layers do not tell; "a U-Net of widths 64, 128 for prompts
        of width 96"; "no U-Net of Stable Diffusion".
    """
    prompt_widths, widths, depth = set(), set(), 0
    for name, shape in shapes.items():
        if (match := re.search(ATTENTION_WEIGHT, name)) and len(shape) == 2:
            depth = max(depth, int(match[1]) + 1)
            widths.add(shape[0])
            if match[2] == "2" and match[3] != "to_q":
                prompt_widths.add(shape[1])
    if not widths:
        return "no U-Net of Stable Diffusion"
    names = [
        family.name
        for family in FAMILIES
        if prompt_widths <= {family.prompt_width} and widths <= family.widths and depth <= family.depth
    ]
    if names:
        return " or ".join(names)
    told = f"a U-Net of widths {', '.join(map(str, sorted(widths)))}"
    read = f" for prompts of width {', '.join(map(str, sorted(prompt_widths)))}" if prompt_widths else ""
    return told + read


def layout_family(layout: LoraLayout) -> str:
    """Family of the base model that a layout is for."""
    return family_of({f"{m.name}.weight": (m.out_features, m.in_features) for m in layout.modules})


def adapted_weights(
    layout: LoraLayout, weights: Mapping[str, Weight], made_for: str = ""
) -> dict[str, Weight]:
    """The weights that a LoRA of this layout patches, out of a model's.

    Args:
        layout: of the LoRA.
        weights: name -> (out, in) of the model: a state dict of diffusers, ComfyUI's with or without
            `diffusion_model.`, or the shapes alone; other entries are ignored.
        made_for: name of the base model that the LoRA was made for, for the message.

    Returns:
        Module of the layout -> its weight, in the layout's order.

    Raises:
        LayoutError: the model is of another family, or lacks modules, or has other shapes.
    """
    layers = layers_per_block([module.name for module in layout.modules])
    found: dict[str, Weight] = {}
    for prefix in PREFIXES:
        for translate in (False, True):
            names = {
                m.name: f"{prefix}{weight_name(m.name, layers, translate)}.weight" for m in layout.modules
            }
            here = {module: weights[name] for module, name in names.items() if name in weights}
            found = here if len(here) > len(found) else found
    problems = []
    for module in layout.modules:
        expected = (module.out_features, module.in_features)
        if module.name not in found:
            problems.append(f"{module.name} is missing")
        elif tuple(found[module.name].shape) != expected:
            problems.append(f"{module.name} is {tuple(found[module.name].shape)}, expected {expected}")
    if problems:
        family = family_of({name: weight.shape for name, weight in weights.items()})
        wanted = layout_family(layout)
        name = f"{made_for} ({wanted})" if made_for else wanted
        raise LayoutError(
            f"this LoRA is for {name}, the model is {family}: nothing was patched, because "
            f"{len(problems)} of {len(layout.modules)} layers do not fit ({listing(problems, 2, '; ')}): "
            f"use a model of the first kind, or a DiffLoRA checkpoint for the second"
        )
    return found


def weight_name(module: str, layers: int, original: bool) -> str:
    """A module's path in diffusers' names, or in the original ones where it has any."""
    if not original:
        return module
    try:
        return original_name(module, layers)
    except LayoutError:  # no U-Net of Stable Diffusion has it: then only its own name counts
        return module
