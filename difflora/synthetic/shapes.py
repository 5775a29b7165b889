"""Anti-aliased shapes for the renderer: approximate signed distances and how to paint them.

Distances are negative inside, in picture units (the picture is 2 units wide).
Letters: B pictures, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ellipse(
    u: Tensor, v: Tensor, cx: Tensor, cy: Tensor, rx: Tensor, ry: Tensor, power: float = 2.0
) -> Tensor:
    """Distance to the superellipse |(u-cx)/rx|^p + |(v-cy)/ry|^p = 1, first order in the radius.

    Args:
        u: (B, H, W) horizontal pixel coordinate.
        v: (B, H, W) vertical pixel coordinate, downwards.
        cx: centre, (B, 1, 1) or broadcastable, as ``cy``, ``rx`` and ``ry``.
        cy: centre.
        rx: half width.
        ry: half height.
        power: 2 is an ellipse, larger is boxier.

    Returns:
        (B, H, W) approximate signed distance.
    """
    x, y = (u - cx) / rx, (v - cy) / ry  # (B, H, W)
    if power == 2.0:
        radius = torch.sqrt(x * x + y * y + 1e-8)  # (B, H, W)
    else:
        radius = (x.abs().clamp_min(1e-4) ** power + y.abs().clamp_min(1e-4) ** power) ** (1.0 / power)
    return (radius - 1.0) * torch.minimum(rx, ry)


def segment(u: Tensor, v: Tensor, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor) -> Tensor:
    """Distance (>= 0) to the line segment from a to b, all broadcastable to (B, H, W)."""
    dx, dy = bx - ax, by - ay
    along = (((u - ax) * dx + (v - ay) * dy) / (dx * dx + dy * dy + 1e-8)).clamp(0.0, 1.0)  # (B, H, W)
    return torch.sqrt((u - ax - along * dx) ** 2 + (v - ay - along * dy) ** 2 + 1e-10)


def cover(distance: Tensor, softness: float | Tensor) -> Tensor:
    """How much of each pixel lies inside: 1 inside, 0 outside, linear over ``softness`` units."""
    return (0.5 - distance / softness).clamp(0.0, 1.0)


def paint(canvas: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """Paint over the canvas.

    Args:
        canvas: (B, 3, H, W).
        colour: (B, 3, 1, 1) or (B, 3, H, W).
        alpha: (B, H, W) in [0, 1].

    Returns:
        (B, 3, H, W), a new canvas.
    """
    return torch.lerp(canvas, colour.expand_as(canvas), alpha.unsqueeze(1))


def palette(colours: tuple[tuple[float, float, float], ...], position: Tensor) -> Tensor:
    """A colour between evenly spaced stops.

    Args:
        colours: the stops, RGB in 0..1.
        position: (B,) in [-1, 1], from the first stop to the last.

    Returns:
        (B, 3, 1, 1).
    """
    stops = torch.tensor(colours, device=position.device, dtype=position.dtype)  # (S, 3)
    place = (position.clamp(-1.0, 1.0) + 1.0) / 2.0 * (len(colours) - 1)  # (B,)
    low = place.floor().long().clamp(max=len(colours) - 2)  # (B,)
    mixed = torch.lerp(stops[low], stops[low + 1], (place - low).unsqueeze(1))  # (B, 3)
    return mixed[:, :, None, None]
