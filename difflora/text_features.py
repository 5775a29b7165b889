"""Prompts -> text features: what the denoiser of a Stable Diffusion model is told, as ONE tensor.

Stable Diffusion 1 and 2 read the last layer of one CLIP text encoder. SDXL (Podell et al. 2023, arXiv
2307.01952, section 2.1) reads the last but one of two encoders side by side, and adds the pooled text of the
second one to its time embedding. Here the pooled text lies behind the words as further rows, padded with
zeros: whatever stores, repeats or picks text features handles every base model the same way.

Letters: B prompts, L prompt tokens, X rows of pooled text, W text width, Q width of the pooled text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TextEncoder = tuple[Any, Any]  # tokenizer and network of transformers


@torch.no_grad()
def encode_text(
    encoders: Sequence[TextEncoder], prompts: list[str], pooled_width: int, device: torch.device | str
) -> Tensor:
    """Text features of prompts; too long ones are cut as everywhere in Stable Diffusion.

    Args:
        encoders: of the base model, in its order.
        prompts: B texts.
        pooled_width: Q, 0 for a base model that is told the words only.
        device: where the networks are.

    Returns:
        (B, L + X, W), X = 0 without pooled text.
    """
    words, pooled = [], None
    for tokenizer, network in encoders:
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids  # (B, L)
        output = network(tokens.to(device), output_hidden_states=pooled_width > 0)
        words.append(output.hidden_states[-2] if pooled_width else output.last_hidden_state)  # (B, L, .)
        pooled = output[0]  # (B, Q) of an encoder with projection, which is the last one
    joined = torch.cat(words, dim=-1)  # (B, L, W)
    if not pooled_width or pooled is None:
        return joined
    rows = math.ceil(pooled_width / joined.shape[-1])  # X
    padded = functional.pad(pooled, (0, rows * joined.shape[-1] - pooled_width))  # (B, X * W)
    return torch.cat([joined, padded.unflatten(-1, (rows, -1))], dim=1)  # (B, L + X, W)


def split_text(features: Tensor, pooled_width: int) -> tuple[Tensor, Tensor]:
    """Inverse of the packing: features (B, L + X, W) -> words (B, L, W), pooled text (B, Q)."""
    rows = math.ceil(pooled_width / features.shape[-1])  # X
    words = features[:, : features.shape[1] - rows]  # (B, L, W)
    return words, features[:, features.shape[1] - rows :].flatten(1)[:, :pooled_width]
