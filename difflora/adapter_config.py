"""Alpha where peft and diffusers keep it: not among the tensors, but in JSON beside them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import atomic_save
from .layout import LoraLayout
from .lora_keys import PEFT_PREFIX, split_key

WEIGHTS_NAME = "adapter_model.safetensors"  # peft reads a folder with exactly these two names
CONFIG_NAME = "adapter_config.json"
HEADER_KEY = "lora_adapter_metadata"  # diffusers >= 0.34 writes the same JSON into the file's header
HEADER_PREFIX = "unet."


def save_adapter_config(weights: str | Path, layout: LoraLayout) -> Path:
    """Write the `adapter_config.json` that `peft.PeftModel.from_pretrained` needs beside the weights.

    Args:
        weights: `<folder>/adapter_model.safetensors`.
        layout: modules, rank and alpha.

    Raises:
        CheckpointError: peft would not find weights of that name.
    """
    path = Path(weights)
    if path.name != WEIGHTS_NAME:
        raise CheckpointError(
            f"peft reads a folder of its own for each adapter: save to <folder>/{WEIGHTS_NAME}, not to {path}"
        )
    config = {
        "peft_type": "LORA",
        "r": layout.rank,
        "lora_alpha": layout.alpha,
        "target_modules": [module.name for module in layout.modules],
        "inference_mode": True,
    }
    return atomic_save(
        path.with_name(CONFIG_NAME), lambda file: file.write_text(json.dumps(config, indent=1))
    )


def stated_alphas(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], required: bool
) -> dict[str, Tensor]:
    """Alpha tensors, under keys as kohya has them, for a file whose alphas are only in JSON.

    Args:
        path: of the LoRA file, to look beside it.
        tensors: key -> tensor.
        header: string metadata of the file.
        required: whether nothing else says what alpha is.

    Returns:
        `<module>.alpha` -> (); empty if the file has alphas, or if nothing says what they are.

    Raises:
        CheckpointError: the JSON is damaged, or is missing where it is required: peft has no default alpha.
    """
    parts = [(split_key(key), tensor) for key, tensor in tensors.items()]
    if any(part == "alpha" for (_, part), _ in parts):
        return {}
    beside = Path(path).with_name(CONFIG_NAME)
    is_peft = any(key.startswith(PEFT_PREFIX) for key in tensors)
    if HEADER_KEY in header:
        config = _config(header[HEADER_KEY], path)
        nested = {k.removeprefix(HEADER_PREFIX): v for k, v in config.items() if k.startswith(HEADER_PREFIX)}
        config = nested or config
    elif is_peft and beside.is_file():
        config = _config(beside.read_text(encoding="utf-8"), beside)
    elif is_peft and required:
        raise CheckpointError(
            f"{path} does not say its alpha: put the {CONFIG_NAME} of this adapter beside it"
        )
    else:
        return {}
    return {
        f"{module}.alpha": torch.tensor(_alpha(config, module, down.shape[0], path))
        for (module, part), down in parts
        if part == "lora_down"
    }


def _config(text: str, path: str | Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: its LoRA settings are not JSON ({error}): get the file again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its LoRA settings are not a JSON object: get the file again")
    return config


def _alpha(config: Mapping[str, Any], module: str, rank: int, path: str | Path) -> float:
    """Alpha of one module such that its scale is alpha / rank, as peft's `LoraConfig` defines it."""
    name = module.removeprefix(PEFT_PREFIX).removeprefix(HEADER_PREFIX)
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)),
        config.get("lora_alpha"),
    )
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: its LoRA settings have no lora_alpha for {name}: get the file again")
    # rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732): scale = alpha / sqrt(rank)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
