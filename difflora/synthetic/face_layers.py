"""The layers of the face: head, cheeks, beard, mouth, nose, eyes and brows.

A layer is a function (figure, canvas) -> canvas that paints over what lies behind it.
Letters: B pictures, H x W pixels; every canvas is (B, 3, H, W), RGB in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import Figure, plane
from .people import TRAIT_INDEX
from .shapes import cover, ellipse, paint, palette, segment

IRIS = (
    (0.13, 0.08, 0.06),
    (0.40, 0.22, 0.10),
    (0.55, 0.43, 0.17),
    (0.22, 0.56, 0.27),
    (0.20, 0.48, 0.85),
    (0.60, 0.68, 0.74),
)
LIPS = ((0.78, 0.52, 0.44), (0.84, 0.38, 0.40), (0.80, 0.10, 0.16))
FRECKLES = (
    (-0.21, 0.10),
    (-0.15, 0.14),
    (-0.26, 0.16),
    (-0.19, 0.19),
    (0.21, 0.10),
    (0.15, 0.14),
    (0.26, 0.16),
    (0.19, 0.19),
    (-0.10, 0.09),
    (0.10, 0.09),
)


def head(figure: Figure, canvas: Tensor) -> Tensor:
    """The bare head: skin within the outline of the figure."""
    return paint(canvas, figure.skin * figure.face_light, cover(figure.head_distance, figure.soft))


def _spot(figure: Figure, x: Tensor | float, y: Tensor | float, radius: float | Tensor) -> Tensor:
    """A soft spot that moves with the face, (B, H, W) in 0..1."""
    px, py, facing = figure.project(x, y)
    return torch.exp(-(((figure.u - px) / (radius * facing)) ** 2 + ((figure.v - py) / radius) ** 2))


def cheeks(figure: Figure, canvas: Tensor) -> Tensor:
    """Blush and freckles."""
    inside = cover(figure.head_distance, figure.soft)  # (B, H, W)
    blush = 0.10 + 0.42 * (figure.trait("blush") - 0.1).clamp_min(0.0)
    rosy = figure.skin * torch.tensor([1.06, 0.62, 0.60], device=inside.device).view(1, 3, 1, 1)
    for side in (-1.0, 1.0):
        canvas = paint(
            canvas, rosy * figure.face_light, blush * inside * _spot(figure, side * 0.235, 0.155, 0.105)
        )
    amount = 0.85 * (figure.trait("freckles") - 0.05).clamp(0.0, 0.75) / 0.75
    dots = torch.zeros_like(figure.u)
    for x, y in FRECKLES:
        dots = torch.maximum(dots, _spot(figure, x, y, 0.026))  # (B, H, W)
    spotted = figure.skin * torch.tensor([0.62, 0.42, 0.30], device=inside.device).view(1, 3, 1, 1)
    return paint(canvas, spotted * figure.face_light, amount * inside * dots)


def beard(figure: Figure, canvas: Tensor) -> Tensor:
    """Beard and moustache, as much of them as the traits say."""
    inside = cover(figure.head_distance, figure.soft)  # (B, H, W)
    px, py, _ = figure.project(0.0, figure.mouth_y)
    edge = py - 0.01 - 0.30 * ((figure.u - 0.7 * px) / figure.width) ** 2  # (B, H, W)
    amount = (figure.trait("beard") - 0.15).clamp(0.0, 0.7) / 0.7
    area = ((figure.v - edge) / 0.09).clamp(0.0, 1.0) * inside
    canvas = paint(canvas, figure.dark * figure.face_light, (0.93 * amount**0.7) * area)
    amount = (figure.trait("moustache") - 0.35).clamp(0.0, 0.35) / 0.35
    px, py, facing = figure.project(0.0, figure.mouth_y - 0.065, 0.02)
    bow = (figure.u - px).abs() / (figure.mouth_w * 0.95 * facing)  # (B, H, W)
    strip = (figure.v - py - 0.045 * bow**2).abs() - 0.032 * (1.0 - bow).clamp_min(0.0) ** 0.5
    strip = torch.where(bow < 1.0, strip, strip + (bow - 1.0) * 0.2)
    return paint(canvas, figure.dark * figure.face_light, 0.95 * amount * cover(strip, figure.soft))


def mouth(figure: Figure, canvas: Tensor) -> Tensor:
    """Lips, the seam or the open mouth between them, and the upper teeth."""
    px, py, facing = figure.project(0.0, figure.mouth_y, 0.02)
    half = figure.mouth_w * facing  # (B, 1, 1)
    s = (figure.u - px) / half  # (B, H, W)
    arch = (1.0 - s * s).clamp_min(0.0)  # (B, H, W)
    middle = py - figure.smile * (s * s - 0.45)  # (B, H, W)
    lip = 0.030 * (1.0 + 0.55 * figure.trait("lip_fullness"))
    upper, lower = middle - 0.40 * figure.open * arch, middle + 0.60 * figure.open * arch
    side = (s.abs() - 1.0) * half
    bow = lip * arch.sqrt()
    lips = torch.maximum(
        torch.maximum(upper - 0.9 * bow - 0.006 - figure.v, figure.v - lower - 1.15 * bow - 0.006), side
    )
    colour = palette(LIPS, figure.traits[:, TRAIT_INDEX["lip_colour"]])
    natural = (figure.skin.mean(1, keepdim=True) / 0.75).clamp(0.55, 1.1)
    canvas = paint(canvas, colour * natural * figure.face_light, cover(lips, figure.soft))
    seam = torch.maximum(torch.maximum(upper - 0.009 - figure.v, figure.v - lower - 0.009), side)
    dark = (
        torch.tensor([0.26, 0.07, 0.08], device=s.device).view(1, 3, 1, 1).expand(len(figure.traits), 3, 1, 1)
    )
    canvas = paint(canvas, dark, 0.9 * cover(seam, figure.soft))
    teeth = torch.maximum(torch.maximum(upper + 0.006 - figure.v, figure.v - upper - 0.055), side + 0.03)
    show = (figure.open / 0.06).clamp(0.0, 1.0) * cover(torch.maximum(teeth, figure.v - lower), figure.soft)
    return paint(canvas, torch.full_like(dark, 0.97) * figure.face_light.clamp(0.75, 1.0), show)


def nose(figure: Figure, canvas: Tensor) -> Tensor:
    """Bridge, shadow under the nose, tip and its highlight."""
    wide = 0.055 * (1.0 + 0.36 * figure.trait("nose_width"))
    top_x, top_y, _ = figure.project(0.0, figure.eye_y + 0.03, 0.03)
    tip_x, tip_y, _ = figure.project(0.0, figure.nose_y, 0.11)
    bridge = segment(figure.u, figure.v, top_x, top_y, tip_x, tip_y)  # (B, H, W)
    along = ((figure.v - top_y) / (tip_y - top_y)).clamp(0.0, 1.0)
    body = bridge - wide * (0.35 + 0.45 * along)
    side = figure.shade(((figure.u - tip_x) / (wide * 2.2)).clamp(-0.9, 0.9), torch.zeros_like(figure.u))
    canvas = paint(canvas, figure.skin * side, 0.75 * cover(body, figure.soft * 2.5))
    under = ellipse(figure.u, figure.v, tip_x, tip_y + 0.030, wide * 1.25, torch.full_like(wide, 0.042))
    canvas = paint(canvas, figure.skin * figure.face_light * 0.66, 0.85 * cover(under, figure.soft * 1.5))
    ball = ellipse(figure.u, figure.v, tip_x, tip_y, wide * 1.12, torch.full_like(wide, 0.050))
    rosy = figure.skin * torch.tensor([1.05, 0.96, 0.93], device=under.device).view(1, 3, 1, 1)
    canvas = paint(canvas, rosy * side, cover(ball, figure.soft * 1.5))
    return paint(
        canvas,
        (rosy * 1.25).clamp(0.0, 1.0),
        0.45 * torch.exp(-(((figure.u - tip_x + 0.01) ** 2 + (figure.v - tip_y + 0.02) ** 2) / 0.0007)),
    )


def _eye(figure: Figure, canvas: Tensor, side: float) -> Tensor:
    """One eye; side -1 is the one on the left of the picture, 1 the other."""
    x, y, facing = figure.project(side * figure.eye_x, figure.eye_y)
    wide = figure.eye_a * facing
    tall = figure.eye_a * (0.66 + 0.20 * figure.trait("eye_roundness")) * figure.eye_open
    slant = side * 0.26 * figure.trait("eye_tilt")
    du, dv = figure.u - x, figure.v - y + slant * (figure.u - x)  # (B, H, W)
    zero = torch.zeros_like(wide)
    lash = ellipse(du, dv, zero, zero - 0.016, wide * 1.12, tall * 1.06)  # (B, H, W)
    canvas = paint(canvas, figure.dark * 0.5, 0.9 * cover(lash, figure.soft))
    ball = ellipse(du, dv, zero, zero + 0.008, wide, tall * 0.94)
    white = cover(ball, figure.soft)  # (B, H, W)
    canvas = paint(canvas, torch.full_like(figure.skin, 0.96) * figure.face_light.clamp(0.6, 1.05), white)
    gaze = 0.020 * plane(figure.jitter["gaze"]) + 0.016 * figure.turn
    radius = torch.minimum(figure.eye_a * 0.60, tall * 0.98)
    iris = ellipse(du, dv, gaze, zero + 0.004, radius * (0.6 + 0.4 * facing), radius)  # (B, H, W)
    canvas = paint(
        canvas, palette(IRIS, figure.traits[:, TRAIT_INDEX["iris"]]), white * cover(iris, figure.soft)
    )
    pupil = ellipse(du, dv, gaze, zero + 0.004, radius * 0.46, radius * 0.46)
    canvas = paint(canvas, torch.full_like(figure.skin, 0.03), white * cover(pupil, figure.soft))
    spark = torch.exp(-(((du - gaze + 0.018) ** 2 + (dv + 0.022) ** 2) / 0.00035))
    return paint(canvas, torch.ones_like(figure.skin), 0.95 * white * spark)


def eyes(figure: Figure, canvas: Tensor) -> Tensor:
    """Both eyes, as far open as the expression has them."""
    for side in (-1.0, 1.0):
        canvas = _eye(figure, canvas, side)
    return canvas


def _brow(figure: Figure, canvas: Tensor, side: float) -> Tensor:
    """One brow; side as for ``_eye``."""
    y0 = figure.eye_y - 0.150 - 0.030 * figure.trait("brow_height") - figure.raised
    x, y, facing = figure.project(side * figure.eye_x * 1.05, y0, 0.02)
    half = 0.112 * facing
    s = (figure.u - x) / half * side  # (B, H, W), + outwards
    thick = 0.021 * (1.0 + 0.62 * figure.trait("brow_thickness"))
    slope = -0.055 * figure.frown * s * 1.6 - 0.022 * figure.trait("brow_angle") * s  # (B, H, W)
    line = y + slope + 0.022 * s * s
    distance = (figure.v - line).abs() - thick * (1.05 - 0.35 * s).clamp(0.35, 1.4)
    distance = torch.maximum(distance, (s.abs() - 1.0) * half)
    return paint(canvas, figure.dark, 0.95 * cover(distance, figure.soft))


def brows(figure: Figure, canvas: Tensor) -> Tensor:
    """Both brows, raised or drawn together by the expression."""
    for side in (-1.0, 1.0):
        canvas = _brow(figure, canvas, side)
    return canvas
