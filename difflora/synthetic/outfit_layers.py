"""The layers around the face: background, hair, body, ears, glasses and hat.

A layer is a function (figure, canvas) -> canvas that paints over what lies behind; ``background`` is first.
Letters: B pictures, H x W pixels; every canvas is (B, 3, H, W), RGB in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import Figure, plane, table
from .shapes import cover, ellipse, paint, segment

BACKGROUND = (
    (0.55, 0.56, 0.60),
    (0.95, 0.95, 0.96),
    (0.83, 0.24, 0.22),
    (0.25, 0.46, 0.85),
    (0.30, 0.66, 0.38),
    (0.97, 0.81, 0.30),
)
CLOTHES = (
    (0.93, 0.93, 0.94),
    (0.14, 0.14, 0.17),
    (0.76, 0.17, 0.18),
    (0.16, 0.32, 0.70),
    (0.18, 0.52, 0.31),
    (0.50, 0.28, 0.66),
)


def background(figure: Figure) -> Tensor:
    """The first canvas: a wall of the scene's colour, brighter in the middle."""
    colour = table(BACKGROUND, figure.scene.background, figure.traits)[:, :, None, None]  # (B, 3, 1, 1)
    glow = 1.08 - 0.16 * (figure.screen_u**2 + (figure.screen_v + 0.2) ** 2)  # (H, W)
    return (colour * glow * (1.0 + 0.06 * figure.jitter["tint"][:, None, None, None])).clamp(0.0, 1.0)


def _hair_outline(figure: Figure) -> tuple[Tensor, Tensor, Tensor]:
    """Half width (B, 1, 1), top (B, 1, 1) and the ripple (B, H, W) of the outline of the hair."""
    volume = figure.trait("hair_volume")
    half = figure.width * (1.13 + 0.10 * volume)
    top = -figure.height * (1.14 + 0.11 * volume)
    curl = ((figure.trait("hair_curl") + 1.0) / 2.0) ** 1.5
    ripple = 0.034 * curl * torch.sin(17.0 * torch.atan2(figure.u, -figure.v))  # (B, H, W)
    return half, top, ripple


def back_hair(figure: Figure, canvas: Tensor) -> Tensor:
    """The hair behind the head, down to its length."""
    half, top, ripple = _hair_outline(figure)
    bottom = 0.30 + 0.52 * figure.trait("hair_length")
    mid, tall = (top + bottom) / 2.0, (bottom - top) / 2.0
    cx = -0.10 * figure.turn
    distance = ellipse(figure.u, figure.v, cx, mid, half * 1.02, tall, 3.0) + ripple  # (B, H, W)
    light = figure.shade((figure.u - cx) / half * 0.8, torch.zeros_like(figure.u)) * 0.82
    return paint(canvas, figure.hair * light * figure.strands, cover(distance, figure.soft))


def body(figure: Figure, canvas: Tensor) -> Tensor:
    """Neck with the chin's shadow, shoulders in the scene's clothes, and the collar."""
    u, v = figure.body_u, figure.body_v
    zero, neck_w = torch.zeros_like(figure.width), figure.width * 0.46 * (0.9 + 0.15 * figure.jaw)
    neck = torch.maximum((u - 0.04 * figure.turn).abs() - neck_w - 0.10 * (v - 0.55).clamp_min(0.0), 0.2 - v)
    fall = (1.0 - 0.42 * torch.exp(-(((v - figure.height) / 0.16) ** 2))).unsqueeze(1)  # the chin's shadow
    canvas = paint(
        canvas,
        figure.skin * figure.shade(u / (neck_w * 1.4), zero + 0.1) * fall * 0.94,
        cover(neck, figure.soft),
    )
    colour = table(CLOTHES, figure.scene.clothes, figure.traits)[:, :, None, None]  # (B, 3, 1, 1)
    shoulders = ellipse(u, v, zero, zero + 1.18, zero + 0.80, zero + 0.53, 2.4)  # (B, H, W)
    neckline = ellipse(u, v, 0.03 * figure.turn, zero + 0.60, neck_w * 1.15, zero + 0.17)  # (B, H, W)
    cloth = figure.shade((u / 0.95).clamp(-0.95, 0.95), zero - 0.2)
    canvas = paint(canvas, colour * cloth, cover(torch.maximum(shoulders, -neckline), figure.soft))
    collar = torch.maximum(neckline.abs() - 0.022, shoulders)  # (B, H, W)
    return paint(canvas, colour * cloth * 0.78 + 0.03, cover(collar, figure.soft))


def ears(figure: Figure, canvas: Tensor) -> Tensor:
    """Both ears; the far one hides behind the head as it turns."""
    size = 0.080 * (1.0 + 0.38 * figure.trait("ear_size"))
    for side in (-1.0, 1.0):
        hidden = (side * figure.turn).clamp_min(0.0)  # the far ear
        x = side * (figure.width + 0.30 * size - 0.16 * hidden) - 0.05 * figure.turn
        y = figure.eye_y + 0.07 + 0.25 * torch.sin(figure.pitch)
        distance = ellipse(figure.u, figure.v, x, y, size * 0.72, size * 1.22)  # (B, H, W)
        light = figure.shade((side * 0.55 + 0.0 * figure.u), 0.0 * figure.u)
        canvas = paint(canvas, figure.skin * light * 0.97, cover(distance, figure.soft))
        inner = ellipse(figure.u, figure.v, x, y, size * 0.36, size * 0.75)
        canvas = paint(canvas, figure.skin * light * 0.74, 0.8 * cover(inner, figure.soft))
    return canvas


def front_hair(figure: Figure, canvas: Tensor) -> Tensor:
    """The hair in front of the head: hairline, parting, and their shadow on the forehead."""
    half, top, ripple = _hair_outline(figure)
    zero = torch.zeros_like(half)
    outer = (
        ellipse(figure.u, figure.v, -0.03 * figure.turn, zero + 0.06, half, 0.06 - top, 2.3) + ripple * 0.8
    )
    x = (figure.u - 0.32 * figure.turn) / figure.width  # (B, H, W)
    part = 0.45 * figure.trait("hair_parting")
    hairline = (
        -figure.height * (0.60 - 0.20 * figure.trait("hairline"))
        + 0.7 * torch.sin(figure.pitch) * figure.depth
    )
    sweep = 0.16 * (x - part).abs().clamp(max=1.2) ** 1.3  # falls off the parting
    sides = 0.42 * figure.height * x.abs().clamp_min(0.0) ** 4  # temples
    line = hairline + sweep + sides.clamp(max=0.40) + 0.5 * ripple  # (B, H, W)
    distance = torch.maximum(outer, (figure.v - line) * 0.8)
    shadow = cover(distance - 0.035, figure.soft * 2.0) * cover(figure.head_distance, figure.soft)
    canvas = paint(canvas, figure.skin * figure.face_light * 0.66, 0.55 * shadow)
    light = figure.shade((figure.u / half * 0.85).clamp(-0.95, 0.95), (figure.v / 0.75).clamp(-0.9, 0.9))
    return paint(canvas, figure.hair * light * figure.strands, cover(distance, figure.soft))


def glasses(figure: Figure, canvas: Tensor) -> Tensor:
    """Clear glasses or sunglasses, on those who wear them."""
    clear = plane((figure.scene.accessory == 1).to(figure.u))  # (B, 1, 1)
    shades = plane((figure.scene.accessory == 2).to(figure.u))
    frame = torch.full_like(figure.skin, 0.09)
    bars = torch.full_like(figure.u, 9.0)
    ends = []
    for side in (-1.0, 1.0):
        x, y, facing = figure.project(side * 0.165, figure.eye_y + 0.005, 0.05)
        lens = ellipse(figure.u, figure.v, x, y, 0.135 * facing, torch.full_like(x, 0.118), 2.6)
        canvas = paint(
            canvas,
            frame + 0.10 * (0.1 - (figure.v - y)).clamp(0.0, 0.2).unsqueeze(1),
            0.96 * shades * cover(lens, figure.soft),
        )
        canvas = paint(canvas, torch.ones_like(frame), 0.10 * clear * cover(lens, figure.soft))
        bars = torch.minimum(bars, lens.abs() - 0.013)
        ends.append((x, y, 0.135 * facing))
        ear = side * figure.width - 0.05 * figure.turn
        reach = segment(figure.u, figure.v, x + side * 0.135 * facing, y - 0.02, ear, y - 0.01)
        bars = torch.minimum(bars, torch.maximum(reach - 0.010, figure.head_distance))
    (lx, ly, lw), (rx, _, rw) = ends
    bars = torch.minimum(bars, segment(figure.u, figure.v, lx + lw, ly - 0.02, rx - rw, ly - 0.02) - 0.012)
    return paint(canvas, frame, (clear + shades) * cover(bars, figure.soft))


def hat(figure: Figure, canvas: Tensor) -> Tensor:
    """A knitted hat with a bobble, on those who wear it."""
    wears = plane((figure.scene.accessory == 3).to(figure.u))  # (B, 1, 1)
    half, top, _ = _hair_outline(figure)
    cx, zero = 0.10 * figure.turn, torch.zeros_like(half)
    cuff_y = -figure.height * 0.66 + 0.25 * torch.sin(figure.pitch)
    wool = torch.tensor([0.10, 0.45, 0.50], device=figure.u.device).view(1, 3, 1, 1)
    knit = 1.0 + 0.07 * torch.sin((figure.u - cx) * 46.0).unsqueeze(1)  # (B, 1, H, W)
    light = (
        figure.shade(((figure.u - cx) / half * 0.9).clamp(-0.95, 0.95), (figure.v / 0.8).clamp(-0.9, 0.9))
        * knit
    )
    bobble = ellipse(figure.u, figure.v, cx * 0.5, top - 0.13, zero + 0.105, zero + 0.100)
    canvas = paint(
        canvas,
        torch.tensor([0.96, 0.92, 0.82], device=figure.u.device).view(1, 3, 1, 1) * light,
        wears * cover(bobble, figure.soft * 2.0),
    )
    dome = ellipse(figure.u, figure.v, cx * 0.6, cuff_y, half * 1.05, cuff_y - top + 0.10, 2.2)
    dome = torch.maximum(dome, figure.v - cuff_y)
    canvas = paint(canvas, wool * light, wears * cover(dome, figure.soft))
    bend = 0.10 * ((figure.u - cx) / half) ** 2
    cuff = torch.maximum(
        (figure.v - cuff_y + bend - 0.02).abs() - 0.075, (figure.u - cx * 0.8).abs() - half * 1.07
    )
    return paint(canvas, wool * 0.72 * light, wears * cover(cuff, figure.soft))
