"""Key names of LoRA files: how other tools call a module, and back.

One module, `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`, in every style:

| style | key | read by |
|---|---|---|
| kohya | `lora_unet_down_blocks_1_attentions_0_..._attn1_to_q.lora_down.weight` | ComfyUI, A1111, diffusers |
| kohya_sgm | `lora_unet_input_blocks_4_1_..._attn1_to_q.lora_down.weight` | the same, kohya's SDXL scripts |
| diffusion_model | `diffusion_model.input_blocks.4.1 ... .attn1.to_q.lora_down.weight` | ComfyUI |
| diffusers | `unet.down_blocks.1.attentions.0 ... .attn1.to_q.lora_A.weight` | diffusers |
| peft | `base_model.model.down_blocks.1.attentions.0 ... .attn1.to_q.lora_A.weight` | peft |

`alpha` is a tensor in the first three. diffusers assumes alpha = rank; peft has it in `adapter_config.json`.
In files, and only there, PEFT's lora_A is our lora_down and lora_B our lora_up.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .errors import LayoutError
from .layout import listing
from .unet_names import LAYERS_PER_BLOCK, ORIGINAL_ROOTS, diffusers_name, layers_per_block, original_name

KeyStyle = Literal["kohya", "kohya_sgm", "diffusion_model", "diffusers", "peft"]
KOHYA_PREFIX = "lora_unet_"
PEFT_PREFIX = "base_model.model."
DOWN_UP = ("lora_down.weight", "lora_up.weight")
PEFT_DOWN_UP = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class Style:
    """How a kind of file writes its keys.

    Args:
        prefix: before the module.
        factors: ends of the keys of lora_down and lora_up.
        underscores: whether the module path has `_` for `.`.
        original_names: whether U-Net blocks have their original numbers.
        alpha: where alpha is: a tensor, `adapter_config.json`, or nowhere (then alpha is the rank).
    """

    prefix: str
    factors: tuple[str, str]
    underscores: bool
    original_names: bool
    alpha: Literal["tensor", "config", "rank"]


STYLES: Mapping[KeyStyle, Style] = {
    "kohya": Style(KOHYA_PREFIX, DOWN_UP, True, False, "tensor"),
    "kohya_sgm": Style(KOHYA_PREFIX, DOWN_UP, True, True, "tensor"),
    "diffusion_model": Style("diffusion_model.", DOWN_UP, False, True, "tensor"),
    "diffusers": Style("unet.", PEFT_DOWN_UP, False, False, "rank"),
    "peft": Style(PEFT_PREFIX, PEFT_DOWN_UP, False, False, "config"),
}
# Ends of keys that are read; ".lora.down" is diffusers before it used peft, ".default" a raw peft state dict.
PARTS = {
    **{f".{end}": part for end, part in zip(DOWN_UP, ("lora_down", "lora_up"), strict=True)},
    **{f".{end}": part for end, part in zip(PEFT_DOWN_UP, ("lora_down", "lora_up"), strict=True)},
    ".lora_A.default.weight": "lora_down",
    ".lora_B.default.weight": "lora_up",
    ".lora.down.weight": "lora_down",
    ".lora.up.weight": "lora_up",
    ".alpha": "alpha",
}
# A path without prefix (diffusers' `unet.save_lora_adapter`) is only taken for a U-Net's if it begins so.
UNET_ROOTS = ("down_blocks", "mid_block", "up_blocks", "time_embedding", "add_embedding")
# Words of module paths that contain an underscore: with them a kohya key can be read back.
COMPOUND_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks"),
    *("to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out"),
    *("time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("input_blocks", "middle_block", "output_blocks", "emb_layers", "time_embed", "label_emb"),
)


def style_of(key_style: KeyStyle) -> Style:
    """Entry of the table.

    Raises:
        LayoutError: no such style.
    """
    if key_style not in STYLES:
        raise LayoutError(f"unknown key style {key_style!r}: choose one of {', '.join(STYLES)}")
    return STYLES[key_style]


def module_keys(names: Collection[str], style: Style) -> dict[str, str]:
    """Module path -> the part of its keys before `.lora_down.weight`.

    Raises:
        LayoutError: the style has original block names, and a module is not one of a Stable Diffusion U-Net.
    """
    layers = layers_per_block(names)
    paths = {name: original_name(name, layers) if style.original_names else name for name in names}
    return {
        name: style.prefix + (path.replace(".", "_") if style.underscores else path)
        for name, path in paths.items()
    }


def kohya_key(name: str) -> str:
    """Key of a module path: `mid_block.attentions.0` -> `lora_unet_mid_block_attentions_0`."""
    return KOHYA_PREFIX + name.replace(".", "_")


def module_name(key: str, layers: int = LAYERS_PER_BLOCK) -> str | None:
    """Inverse of `module_keys`, for every style: diffusers module path, None if the key is no U-Net module's.

    Args:
        key: before `.lora_down.weight`.
        layers: layers per level of the U-Net, for original block names.

    Raises:
        LayoutError: original block names that such a U-Net does not have.
    """
    prefix = next((style.prefix for style in STYLES.values() if key.startswith(style.prefix)), "")
    path = key.removeprefix(prefix)
    if prefix == KOHYA_PREFIX:
        path = path.replace("_", ".")
        for word in COMPOUND_WORDS:
            path = f".{path}.".replace(f".{word.replace('_', '.')}.", f".{word}.")[1:-1]
    root = path.split(".")[0]
    if root in ORIGINAL_ROOTS:
        return diffusers_name(path, layers)
    return path if prefix or root in UNET_ROOTS else None


def split_key(key: str) -> tuple[str, str]:
    """`x.lora_A.weight` -> (`x`, `lora_down`); the part is empty if the key ends like none that we know."""
    end = next((end for end in PARTS if key.endswith(end)), "")
    return key.removesuffix(end), PARTS.get(end, "")


def module_tensors(
    tensors: Mapping[str, Tensor], names: Collection[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of a LoRA file by module, whatever the style.

    Args:
        tensors: key -> tensor.
        names: modules that there have to be; by default those that there are.

    Returns:
        Module path -> "lora_down", "lora_up", and "alpha" if the file has any alpha -> tensor.

    Raises:
        LayoutError: lists missing and unexpected keys.
    """
    layers = layers_per_block(names or ())
    found: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, str] = {}
    unexpected = []
    for key, tensor in tensors.items():
        module, part = split_key(key)
        name = module_name(module, layers) if part else None
        if name is None or (names is not None and name not in names) or part in found.get(name, {}):
            unexpected.append(key)
        else:
            found.setdefault(name, {})[part] = tensor
            keys[name] = module
    if not found:
        raise LayoutError(
            f"no {KOHYA_PREFIX}*, unet.*, {PEFT_PREFIX}* or diffusion_model.* keys of a U-Net's LoRA, "
            f"but {listing(unexpected, limit=3) or 'nothing'}: load a LoRA file for a Stable Diffusion model"
        )
    parts = {part for parts in found.values() for part in parts} | {"lora_down", "lora_up"}
    missing = [_key(keys[name], part) for name in found for part in parts - found[name].keys()]
    missing += [_key(kohya_key(name), part) for name in set(names or ()) - found.keys() for part in parts]
    check_keys(missing, unexpected)
    return found


def check_keys(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse a file with too few or too many keys.

    Raises:
        LayoutError: lists what is missing and unexpected.
    """
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing keys ({listing(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected keys ({listing(unexpected)})")
    if any(key.startswith(("lora_te", "text_encoder")) for key in unexpected):
        problems.append("text encoders are not supported, only the U-Net")
    if problems:
        raise LayoutError(
            f"LoRA does not fit: {' and '.join(problems)}: it was made for another base model, other layers "
            "or another kind of adapter"
        )


def _key(module: str, part: str) -> str:
    return f"{module}.{part}" if part == "alpha" else f"{module}.{part}.weight"
