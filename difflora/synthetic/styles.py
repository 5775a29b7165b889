"""Styles of pictures: what a sepia print or a pencil sketch leaves of a colour photo.

Letters: B pictures, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .shapes import palette

LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""
SEPIA = ((0.16, 0.10, 0.06), (0.66, 0.49, 0.33), (1.00, 0.93, 0.78))
"""Colours of a sepia print, dark to bright."""
PAPER = (1.0, 0.985, 0.95)
STROKE = 3 / 128
"""Width of a pencil stroke (standard deviation of the blur), as a share of the picture's width."""
DARKEN = 1.5
"""Exponent that makes faint strokes visible."""
HATCHING = 0.35
"""Share of the photo's own brightness in a sketch: what tells sunglasses from glasses."""


def brightness(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B, 1, H, W)."""
    weights = torch.tensor(LUMA, device=pictures.device, dtype=pictures.dtype)[:, None, None]  # (3, 1, 1)
    return (pictures * weights).sum(dim=1, keepdim=True)


def sepia(pictures: Tensor) -> Tensor:
    """A sepia print of colour photos, (B, 3, H, W) in 0..1."""
    grey = brightness(pictures)  # (B, 1, H, W)
    colours = palette(SEPIA, grey.flatten() * 2 - 1)  # (B*H*W, 3, 1, 1)
    return colours.view(len(grey), *grey.shape[2:], 3).permute(0, 3, 1, 2)


def sketch(pictures: Tensor) -> Tensor:
    """A pencil sketch of colour photos, (B, 3, H, W) in 0..1: dark where a photo is darker than around it."""
    grey = brightness(pictures)  # (B, 1, H, W)
    strokes = ((grey + 0.02) / (_blur(grey) + 0.02)).clamp(max=1.0) ** DARKEN  # (B, 1, H, W)
    drawn = strokes * (1 - HATCHING + HATCHING * (0.35 + 0.65 * grey))  # (B, 1, H, W)
    return drawn * torch.tensor(PAPER, device=grey.device, dtype=grey.dtype)[:, None, None]


def _blur(planes: Tensor) -> Tensor:
    """Gaussian blur by `STROKE`; (B, 1, H, W), the border continued."""
    width = STROKE * planes.shape[-1]
    reach = round(2 * width)
    along = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-((along / width) ** 2) / 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(planes, (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, None])  # (B, 1, H + 2 reach, W)
    return functional.conv2d(rows, kernel[None, None, :, None])  # (B, 1, H, W)


STYLES = (None, sepia, sketch)
"""Rows as ATTRIBUTES["style"]; None is the colour photo itself."""


def in_style(pictures: Tensor, style: Tensor) -> Tensor:
    """Pictures in their styles.

    Args:
        pictures: colour photos (B, 3, H, W) in 0..1.
        style: (B,) rows of `STYLES`.

    Returns:
        (B, 3, H, W) in 0..1; colour photos are returned bit for bit.
    """
    for row, draw in enumerate(STYLES):
        chosen = style.to(pictures.device) == row  # (B,)
        if draw is not None and chosen.any():
            pictures = pictures.clone()
            pictures[chosen] = draw(pictures[chosen])
    return pictures
