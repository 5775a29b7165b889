"""Draws the synthetic people: 2.5-D layers of soft shapes on an ellipsoid head, so that yaw gives parallax.

Units: the picture spans [-1, 1] in u (right) and v (down). Angles are radians.
Letters: B pictures, H x W pixels, I identity traits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DiffLoRAError
from .people import NUM_TRAITS, TRAIT_INDEX
from .scenes import JITTER, Scene
from .shapes import cover, ellipse, paint, palette, segment

SKIN = ((0.30, 0.19, 0.14), (0.50, 0.32, 0.22), (0.72, 0.50, 0.36), (0.91, 0.71, 0.57), (0.98, 0.86, 0.77))
HAIR = (
    (0.08, 0.07, 0.08),
    (0.23, 0.14, 0.10),
    (0.42, 0.24, 0.13),
    (0.66, 0.28, 0.11),
    (0.89, 0.68, 0.32),
    (0.93, 0.89, 0.80),
)
IRIS = (
    (0.13, 0.08, 0.06),
    (0.40, 0.22, 0.10),
    (0.55, 0.43, 0.17),
    (0.22, 0.56, 0.27),
    (0.20, 0.48, 0.85),
    (0.60, 0.68, 0.74),
)
LIPS = ((0.78, 0.52, 0.44), (0.84, 0.38, 0.40), (0.80, 0.10, 0.16))
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
# smile, open, brow raise, brow angle (positive: inner end down), eye opening, mouth width;
# rows as ATTRIBUTES["expression"]
EXPRESSION = (
    (0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    (0.105, 0.12, 0.01, 0.0, 0.86, 1.18),
    (-0.10, 0.0, 0.02, -0.38, 0.85, 0.92),
    (0.0, 0.22, 0.075, 0.0, 1.25, 0.62),
    (-0.06, 0.03, -0.045, 0.42, 0.78, 1.0),
)
YAW = (-0.62, 0.0, 0.62)
# direction x, y, z, ambient, diffuse; rows as ATTRIBUTES["light"]
LIGHT = (
    (0.05, -0.45, 0.89, 0.72, 0.36),
    (-0.90, -0.22, 0.38, 0.46, 0.74),
    (0.90, -0.22, 0.38, 0.46, 0.74),
    (0.30, -0.50, 0.81, 0.66, 0.44),
)
TINT = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.07, 0.95, 0.72))
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
CHUNK = 32  # pictures drawn at once: keeps the planes in the cache; measured fastest of 8..128


@dataclass(frozen=True)
class Rendering:
    """Pictures (B, 3, H, W) in 0..1, face boxes (B, 4) x0 y0 x1 y1, landmarks (B, 5, 2) x y, in pixels.

    Landmarks: the eye on the left of the picture, the other eye, nose tip, left and right mouth corner.
    """

    pictures: Tensor
    boxes: Tensor
    landmarks: Tensor


def render(traits: Tensor, scene: Scene, size: int = 64) -> Rendering:
    """Draw people in scenes.

    Args:
        traits: (B, NUM_TRAITS) in [-1, 1].
        scene: B scenes.
        size: width and height in pixels.

    Returns:
        The pictures with their exact face boxes and landmarks; the same input gives the same output.

    Raises:
        DiffLoRAError: when the numbers of people and scenes differ.
    """
    if traits.ndim != 2 or traits.shape[1] != NUM_TRAITS or traits.shape[0] != len(scene):
        raise DiffLoRAError(
            f"render needs one row of {NUM_TRAITS} traits per scene, "
            f"got {tuple(traits.shape)} for {len(scene)} scenes"
        )
    parts = [
        _Portrait(traits[i : i + CHUNK], scene[i : i + CHUNK], size).draw()
        for i in range(0, len(scene), CHUNK)
    ]
    return Rendering(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("pictures", "boxes", "landmarks"))
    )


def _table(rows: tuple[tuple[float, ...], ...], index: Tensor, like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device, dtype=like.dtype)[index]  # (B, columns)


def _plane(column: Tensor) -> Tensor:
    return column[:, None, None]  # (B, 1, 1)


class _Portrait:
    """One chunk of pictures being drawn: ``__init__`` settles geometry, ``draw`` paints back to front."""

    def __init__(self, traits: Tensor, scene: Scene, size: int) -> None:
        self.traits, self.scene, self.size = traits, scene, size
        self.soft = 2.6 / size  # edge width: 1.3 pixels
        self.jitter = {name: scene.jitter[:, i].to(traits) for i, name in enumerate(JITTER)}
        strength = _plane(1.0 + 0.15 * self.jitter["strength"])
        mood = _table(EXPRESSION, scene.expression, traits)  # (B, 6)
        self.smile, self.open, self.raised, self.frown, eye_open, self.grin = (
            _plane(mood[:, i]) for i in range(6)
        )
        self.smile, self.open, self.frown = self.smile * strength, self.open * strength, self.frown * strength
        self.eye_open = 1.0 + (eye_open - 1.0) * strength

        yaw = _table(tuple((y,) for y in YAW), scene.pose, traits)[:, 0] + 0.13 * self.jitter["yaw"]
        self.yaw, self.pitch = _plane(yaw), _plane(0.14 * self.jitter["pitch"])
        self.turn = torch.sin(self.yaw)  # (B, 1, 1)
        self.roll = _plane(0.10 * self.jitter["roll"])
        self.zoom = _plane(1.20 + 0.07 * self.jitter["zoom"])
        self.shift_x = _plane(0.05 * self.jitter["shift_x"])
        self.shift_y = _plane(0.04 * self.jitter["shift_y"]) + 0.04
        self._head_size()
        self._pixel_grid()
        self._light()

    def trait(self, name: str) -> Tensor:
        """(B, 1, 1) value of one trait."""
        return _plane(self.traits[:, TRAIT_INDEX[name]])

    def _head_size(self) -> None:
        self.width = 0.405 * (1.0 + 0.13 * self.trait("skull_width"))
        self.height = 0.475 * (1.0 + 0.12 * self.trait("face_length"))
        self.jaw = 0.70 + 0.17 * self.trait("jaw_width")
        self.depth = 0.40
        self.eye_x = 0.160 * (1.0 + 0.20 * self.trait("eye_spacing"))
        self.eye_y = -0.035 - 0.055 * self.trait("eye_height")
        self.eye_a = 0.092 * (1.0 + 0.28 * self.trait("eye_size"))
        self.nose_y = self.eye_y + 0.185 + 0.06 * self.trait("nose_length")
        self.mouth_y = 0.285 - 0.035 * self.trait("mouth_height") + 0.03 * self.trait("face_length")
        self.mouth_w = 0.130 * (1.0 + 0.30 * self.trait("mouth_width")) * self.grin

    def _pixel_grid(self) -> None:
        line = (
            torch.arange(self.size, device=self.traits.device, dtype=self.traits.dtype) + 0.5
        ) / self.size * 2 - 1
        self.screen_v, self.screen_u = torch.meshgrid(line, line, indexing="ij")  # (H, W) twice
        x = (self.screen_u - self.shift_x) / self.zoom  # (B, H, W)
        y = (self.screen_v - self.shift_y) / self.zoom  # (B, H, W)
        self.body_u, self.body_v = x, y
        cos, sin = torch.cos(self.roll), torch.sin(self.roll)
        self.u, self.v = cos * x + sin * y, cos * y - sin * x  # (B, H, W) in the head's frame

    def _light(self) -> None:
        self.light = _table(LIGHT, self.scene.light, self.traits)  # (B, 5)
        self.tint = _table(TINT, self.scene.light, self.traits)[:, :, None, None]  # (B, 3, 1, 1)

    def project(
        self, x: Tensor | float, y: Tensor | float, out: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A point of the frontal face -> its place after yaw and pitch, and its horizontal foreshortening."""
        x = torch.as_tensor(x, device=self.traits.device, dtype=self.traits.dtype) + 0.0 * self.yaw
        y = torch.as_tensor(y, device=self.traits.device, dtype=self.traits.dtype) + 0.0 * self.yaw
        flat = (1.0 - (x / self.width) ** 2 - (y / self.height) ** 2).clamp_min(0.05)
        z = self.depth * torch.sqrt(flat) + out  # (B, 1, 1)
        px = x * torch.cos(self.yaw) + z * self.turn
        facing = (z * torch.cos(self.yaw) - x * self.turn) / z
        py = y * torch.cos(self.pitch) + z * torch.sin(self.pitch)
        return px, py, facing.clamp(0.30, 1.15)

    def shade(self, normal_x: Tensor, normal_y: Tensor) -> Tensor:
        """Lambert shading of a rounded surface, (B, 1, H, W)."""
        normal_z = torch.sqrt((1.0 - normal_x**2 - normal_y**2).clamp_min(0.02))  # (B, H, W)
        lx, ly, lz, ambient, diffuse = (_plane(self.light[:, i]) for i in range(5))
        lambert = (normal_x * lx + normal_y * ly + normal_z * lz).clamp_min(0.0)  # (B, H, W)
        return (ambient + diffuse * lambert).unsqueeze(1)

    def draw(self) -> Rendering:
        """Paint every layer, back to front."""
        self.skin = palette(SKIN, self.traits[:, TRAIT_INDEX["skin_tone"]])  # (B, 3, 1, 1)
        warm = self.trait("skin_warmth").unsqueeze(1)
        self.skin = self.skin * torch.cat([1 + 0.04 * warm, 1 - 0.0 * warm, 1 - 0.10 * warm], dim=1)
        self.hair = palette(HAIR, self.traits[:, TRAIT_INDEX["hair_tone"]])
        warm = self.trait("hair_warmth").unsqueeze(1)
        self.hair = self.hair * torch.cat([1 + 0.16 * warm, 1 - 0.02 * warm, 1 - 0.22 * warm], dim=1)
        self.dark = self.hair * 0.62 * (1 - 0.25 * self.hair.mean(1, keepdim=True))  # brows, beard
        self.strands = self._hair_strands()
        canvas = self._background()
        canvas = self._back_hair(canvas)
        canvas = self._body(canvas)
        canvas = self._ears(canvas)
        canvas = self._head(canvas)
        canvas = self._cheeks(canvas)
        canvas = self._beard(canvas)
        canvas = self._mouth(canvas)
        canvas = self._nose(canvas)
        for side in (-1.0, 1.0):
            canvas = self._eye(canvas, side)
        canvas = self._front_hair(canvas)
        for side in (-1.0, 1.0):
            canvas = self._brow(canvas, side)
        canvas = self._glasses(canvas)
        canvas = self._hat(canvas)
        pictures = (canvas * self.tint * (1.0 + 0.05 * self.jitter["level"][:, None, None, None])).clamp(
            0.0, 1.0
        )
        return Rendering(pictures, self._boxes(), self._landmarks())

    def _background(self) -> Tensor:
        colour = _table(BACKGROUND, self.scene.background, self.traits)[:, :, None, None]  # (B, 3, 1, 1)
        glow = 1.08 - 0.16 * (self.screen_u**2 + (self.screen_v + 0.2) ** 2)  # (H, W)
        return (colour * glow * (1.0 + 0.06 * self.jitter["tint"][:, None, None, None])).clamp(0.0, 1.0)

    def _hair_strands(self) -> Tensor:
        """Lighter and darker strands with a glossy band, (B, 1, H, W)."""
        angle = torch.atan2(self.u - 0.25 * self.turn, -(self.v - 0.15))  # (B, H, W)
        wave = self.trait("hair_curl").add(1.0).mul(0.5)  # (B, 1, 1)
        strands = torch.sin(angle * 21.0 + wave * 3.2 * torch.sin(self.v * 15.0))  # (B, H, W)
        height = -(self.v + 0.36 * self.height / 0.475) * 6.5
        gloss = torch.exp(-((height - 1.0) ** 2))  # (B, H, W)
        return (1.0 + 0.10 * strands + 0.20 * gloss).unsqueeze(1)

    def _hair_outline(self) -> tuple[Tensor, Tensor, Tensor]:
        """Half width, top and the ripple of the outline of the hair."""
        volume = self.trait("hair_volume")
        half = self.width * (1.13 + 0.10 * volume)
        top = -self.height * (1.14 + 0.11 * volume)
        curl = ((self.trait("hair_curl") + 1.0) / 2.0) ** 1.5
        ripple = 0.034 * curl * torch.sin(17.0 * torch.atan2(self.u, -self.v))  # (B, H, W)
        return half, top, ripple

    def _back_hair(self, canvas: Tensor) -> Tensor:
        half, top, ripple = self._hair_outline()
        bottom = 0.30 + 0.52 * self.trait("hair_length")
        mid, tall = (top + bottom) / 2.0, (bottom - top) / 2.0
        cx = -0.10 * self.turn
        distance = ellipse(self.u, self.v, cx, mid, half * 1.02, tall, 3.0) + ripple  # (B, H, W)
        light = self.shade((self.u - cx) / half * 0.8, torch.zeros_like(self.u)) * 0.82
        return paint(canvas, self.hair * light * self.strands, cover(distance, self.soft))

    def _body(self, canvas: Tensor) -> Tensor:
        u, v = self.body_u, self.body_v
        zero, neck_w = torch.zeros_like(self.width), self.width * 0.46 * (0.9 + 0.15 * self.jaw)
        neck = torch.maximum(
            (u - 0.04 * self.turn).abs() - neck_w - 0.10 * (v - 0.55).clamp_min(0.0), 0.2 - v
        )
        fall = (1.0 - 0.42 * torch.exp(-(((v - self.height) / 0.16) ** 2))).unsqueeze(1)  # the chin's shadow
        canvas = paint(
            canvas,
            self.skin * self.shade(u / (neck_w * 1.4), zero + 0.1) * fall * 0.94,
            cover(neck, self.soft),
        )
        colour = _table(CLOTHES, self.scene.clothes, self.traits)[:, :, None, None]  # (B, 3, 1, 1)
        shoulders = ellipse(u, v, zero, zero + 1.18, zero + 0.80, zero + 0.53, 2.4)  # (B, H, W)
        neckline = ellipse(u, v, 0.03 * self.turn, zero + 0.60, neck_w * 1.15, zero + 0.17)  # (B, H, W)
        cloth = self.shade((u / 0.95).clamp(-0.95, 0.95), zero - 0.2)
        canvas = paint(canvas, colour * cloth, cover(torch.maximum(shoulders, -neckline), self.soft))
        collar = torch.maximum(neckline.abs() - 0.022, shoulders)  # (B, H, W)
        return paint(canvas, colour * cloth * 0.78 + 0.03, cover(collar, self.soft))

    def _ears(self, canvas: Tensor) -> Tensor:
        size = 0.080 * (1.0 + 0.38 * self.trait("ear_size"))
        for side in (-1.0, 1.0):
            hidden = (side * self.turn).clamp_min(0.0)  # the far ear
            x = side * (self.width + 0.30 * size - 0.16 * hidden) - 0.05 * self.turn
            y = self.eye_y + 0.07 + 0.25 * torch.sin(self.pitch)
            distance = ellipse(self.u, self.v, x, y, size * 0.72, size * 1.22)  # (B, H, W)
            light = self.shade((side * 0.55 + 0.0 * self.u), 0.0 * self.u)
            canvas = paint(canvas, self.skin * light * 0.97, cover(distance, self.soft))
            inner = ellipse(self.u, self.v, x, y, size * 0.36, size * 0.75)
            canvas = paint(canvas, self.skin * light * 0.74, 0.8 * cover(inner, self.soft))
        return canvas

    def _head(self, canvas: Tensor) -> Tensor:
        below = (self.v / self.height).clamp(0.0, 1.0)  # (B, H, W)
        centre = self.turn * (0.02 + 0.10 * below)
        width = self.width * (1.0 - (1.0 - self.jaw) * below**1.4)  # (B, H, W)
        chin = (self.trait("chin") + 1.0) / 2.0
        tall = self.height * (1.0 + 0.05 * chin)
        x, y = (self.u - centre) / width, self.v / tall  # (B, H, W)
        power = 2.55 - 0.70 * chin * (below > 0)
        radius = (x.abs().clamp_min(1e-4) ** power + y.abs().clamp_min(1e-4) ** power) ** (1.0 / power)
        self.head_distance = (radius - 1.0) * self.width  # (B, H, W)
        self.face_x, self.face_y = x, y
        self.face_light = self.shade((x * 0.90).clamp(-0.98, 0.98), (y * 0.72).clamp(-0.95, 0.95))
        return paint(canvas, self.skin * self.face_light, cover(self.head_distance, self.soft))

    def _spot(self, x: Tensor | float, y: Tensor | float, radius: float | Tensor) -> Tensor:
        """A soft spot that moves with the face, (B, H, W) in 0..1."""
        px, py, facing = self.project(x, y)
        return torch.exp(-(((self.u - px) / (radius * facing)) ** 2 + ((self.v - py) / radius) ** 2))

    def _cheeks(self, canvas: Tensor) -> Tensor:
        inside = cover(self.head_distance, self.soft)  # (B, H, W)
        blush = 0.10 + 0.42 * (self.trait("blush") - 0.1).clamp_min(0.0)
        rosy = self.skin * torch.tensor([1.06, 0.62, 0.60], device=inside.device).view(1, 3, 1, 1)
        for side in (-1.0, 1.0):
            canvas = paint(
                canvas, rosy * self.face_light, blush * inside * self._spot(side * 0.235, 0.155, 0.105)
            )
        amount = 0.85 * (self.trait("freckles") - 0.05).clamp(0.0, 0.75) / 0.75
        dots = torch.zeros_like(self.u)
        for x, y in FRECKLES:
            dots = torch.maximum(dots, self._spot(x, y, 0.026))  # (B, H, W)
        spotted = self.skin * torch.tensor([0.62, 0.42, 0.30], device=inside.device).view(1, 3, 1, 1)
        return paint(canvas, spotted * self.face_light, amount * inside * dots)

    def _beard(self, canvas: Tensor) -> Tensor:
        inside = cover(self.head_distance, self.soft)  # (B, H, W)
        px, py, _ = self.project(0.0, self.mouth_y)
        edge = py - 0.01 - 0.30 * ((self.u - 0.7 * px) / self.width) ** 2  # (B, H, W)
        amount = (self.trait("beard") - 0.15).clamp(0.0, 0.7) / 0.7
        area = ((self.v - edge) / 0.09).clamp(0.0, 1.0) * inside
        canvas = paint(canvas, self.dark * self.face_light, (0.93 * amount**0.7) * area)
        amount = (self.trait("moustache") - 0.35).clamp(0.0, 0.35) / 0.35
        px, py, facing = self.project(0.0, self.mouth_y - 0.065, 0.02)
        bow = (self.u - px).abs() / (self.mouth_w * 0.95 * facing)  # (B, H, W)
        strip = (self.v - py - 0.045 * bow**2).abs() - 0.032 * (1.0 - bow).clamp_min(0.0) ** 0.5
        strip = torch.where(bow < 1.0, strip, strip + (bow - 1.0) * 0.2)
        return paint(canvas, self.dark * self.face_light, 0.95 * amount * cover(strip, self.soft))

    def _mouth(self, canvas: Tensor) -> Tensor:
        px, py, facing = self.project(0.0, self.mouth_y, 0.02)
        half = self.mouth_w * facing  # (B, 1, 1)
        s = (self.u - px) / half  # (B, H, W)
        arch = (1.0 - s * s).clamp_min(0.0)  # (B, H, W)
        middle = py - self.smile * (s * s - 0.45)  # (B, H, W)
        lip = 0.030 * (1.0 + 0.55 * self.trait("lip_fullness"))
        upper, lower = middle - 0.40 * self.open * arch, middle + 0.60 * self.open * arch
        side = (s.abs() - 1.0) * half
        bow = lip * arch.sqrt()
        lips = torch.maximum(
            torch.maximum(upper - 0.9 * bow - 0.006 - self.v, self.v - lower - 1.15 * bow - 0.006), side
        )
        colour = palette(LIPS, self.traits[:, TRAIT_INDEX["lip_colour"]])
        natural = (self.skin.mean(1, keepdim=True) / 0.75).clamp(0.55, 1.1)
        canvas = paint(canvas, colour * natural * self.face_light, cover(lips, self.soft))
        seam = torch.maximum(torch.maximum(upper - 0.009 - self.v, self.v - lower - 0.009), side)
        dark = (
            torch.tensor([0.26, 0.07, 0.08], device=s.device)
            .view(1, 3, 1, 1)
            .expand(len(self.traits), 3, 1, 1)
        )
        canvas = paint(canvas, dark, 0.9 * cover(seam, self.soft))
        teeth = torch.maximum(torch.maximum(upper + 0.006 - self.v, self.v - upper - 0.055), side + 0.03)
        show = (self.open / 0.06).clamp(0.0, 1.0) * cover(torch.maximum(teeth, self.v - lower), self.soft)
        return paint(canvas, torch.full_like(dark, 0.97) * self.face_light.clamp(0.75, 1.0), show)

    def _nose(self, canvas: Tensor) -> Tensor:
        wide = 0.055 * (1.0 + 0.36 * self.trait("nose_width"))
        top_x, top_y, _ = self.project(0.0, self.eye_y + 0.03, 0.03)
        tip_x, tip_y, _ = self.project(0.0, self.nose_y, 0.11)
        bridge = segment(self.u, self.v, top_x, top_y, tip_x, tip_y)  # (B, H, W)
        along = ((self.v - top_y) / (tip_y - top_y)).clamp(0.0, 1.0)
        body = bridge - wide * (0.35 + 0.45 * along)
        side = self.shade(((self.u - tip_x) / (wide * 2.2)).clamp(-0.9, 0.9), torch.zeros_like(self.u))
        canvas = paint(canvas, self.skin * side, 0.75 * cover(body, self.soft * 2.5))
        under = ellipse(self.u, self.v, tip_x, tip_y + 0.030, wide * 1.25, torch.full_like(wide, 0.042))
        canvas = paint(canvas, self.skin * self.face_light * 0.66, 0.85 * cover(under, self.soft * 1.5))
        ball = ellipse(self.u, self.v, tip_x, tip_y, wide * 1.12, torch.full_like(wide, 0.050))
        rosy = self.skin * torch.tensor([1.05, 0.96, 0.93], device=under.device).view(1, 3, 1, 1)
        canvas = paint(canvas, rosy * side, cover(ball, self.soft * 1.5))
        return paint(
            canvas,
            (rosy * 1.25).clamp(0.0, 1.0),
            0.45 * torch.exp(-(((self.u - tip_x + 0.01) ** 2 + (self.v - tip_y + 0.02) ** 2) / 0.0007)),
        )

    def _eye(self, canvas: Tensor, side: float) -> Tensor:
        x, y, facing = self.project(side * self.eye_x, self.eye_y)
        wide = self.eye_a * facing
        tall = self.eye_a * (0.66 + 0.20 * self.trait("eye_roundness")) * self.eye_open
        slant = side * 0.26 * self.trait("eye_tilt")
        du, dv = self.u - x, self.v - y + slant * (self.u - x)  # (B, H, W)
        zero = torch.zeros_like(wide)
        lash = ellipse(du, dv, zero, zero - 0.016, wide * 1.12, tall * 1.06)  # (B, H, W)
        canvas = paint(canvas, self.dark * 0.5, 0.9 * cover(lash, self.soft))
        ball = ellipse(du, dv, zero, zero + 0.008, wide, tall * 0.94)
        white = cover(ball, self.soft)  # (B, H, W)
        canvas = paint(canvas, torch.full_like(self.skin, 0.96) * self.face_light.clamp(0.6, 1.05), white)
        gaze = 0.020 * _plane(self.jitter["gaze"]) + 0.016 * self.turn
        radius = torch.minimum(self.eye_a * 0.60, tall * 0.98)
        iris = ellipse(du, dv, gaze, zero + 0.004, radius * (0.6 + 0.4 * facing), radius)  # (B, H, W)
        canvas = paint(
            canvas, palette(IRIS, self.traits[:, TRAIT_INDEX["iris"]]), white * cover(iris, self.soft)
        )
        pupil = ellipse(du, dv, gaze, zero + 0.004, radius * 0.46, radius * 0.46)
        canvas = paint(canvas, torch.full_like(self.skin, 0.03), white * cover(pupil, self.soft))
        spark = torch.exp(-(((du - gaze + 0.018) ** 2 + (dv + 0.022) ** 2) / 0.00035))
        return paint(canvas, torch.ones_like(self.skin), 0.95 * white * spark)

    def _brow(self, canvas: Tensor, side: float) -> Tensor:
        y0 = self.eye_y - 0.150 - 0.030 * self.trait("brow_height") - self.raised
        x, y, facing = self.project(side * self.eye_x * 1.05, y0, 0.02)
        half = 0.112 * facing
        s = (self.u - x) / half * side  # (B, H, W), + outwards
        thick = 0.021 * (1.0 + 0.62 * self.trait("brow_thickness"))
        slope = -0.055 * self.frown * s * 1.6 - 0.022 * self.trait("brow_angle") * s  # (B, H, W)
        line = y + slope + 0.022 * s * s
        distance = (self.v - line).abs() - thick * (1.05 - 0.35 * s).clamp(0.35, 1.4)
        distance = torch.maximum(distance, (s.abs() - 1.0) * half)
        return paint(canvas, self.dark, 0.95 * cover(distance, self.soft))

    def _front_hair(self, canvas: Tensor) -> Tensor:
        half, top, ripple = self._hair_outline()
        zero = torch.zeros_like(half)
        outer = ellipse(self.u, self.v, -0.03 * self.turn, zero + 0.06, half, 0.06 - top, 2.3) + ripple * 0.8
        x = (self.u - 0.32 * self.turn) / self.width  # (B, H, W)
        part = 0.45 * self.trait("hair_parting")
        hairline = (
            -self.height * (0.60 - 0.20 * self.trait("hairline")) + 0.7 * torch.sin(self.pitch) * self.depth
        )
        sweep = 0.16 * (x - part).abs().clamp(max=1.2) ** 1.3  # falls off the parting
        sides = 0.42 * self.height * x.abs().clamp_min(0.0) ** 4  # temples
        line = hairline + sweep + sides.clamp(max=0.40) + 0.5 * ripple  # (B, H, W)
        distance = torch.maximum(outer, (self.v - line) * 0.8)
        shadow = cover(distance - 0.035, self.soft * 2.0) * cover(self.head_distance, self.soft)
        canvas = paint(canvas, self.skin * self.face_light * 0.66, 0.55 * shadow)
        light = self.shade((self.u / half * 0.85).clamp(-0.95, 0.95), (self.v / 0.75).clamp(-0.9, 0.9))
        return paint(canvas, self.hair * light * self.strands, cover(distance, self.soft))

    def _glasses(self, canvas: Tensor) -> Tensor:
        clear = _plane((self.scene.accessory == 1).to(self.u))  # (B, 1, 1)
        shades = _plane((self.scene.accessory == 2).to(self.u))
        frame = torch.full_like(self.skin, 0.09)
        bars = torch.full_like(self.u, 9.0)
        ends = []
        for side in (-1.0, 1.0):
            x, y, facing = self.project(side * 0.165, self.eye_y + 0.005, 0.05)
            lens = ellipse(self.u, self.v, x, y, 0.135 * facing, torch.full_like(x, 0.118), 2.6)
            canvas = paint(
                canvas,
                frame + 0.10 * (0.1 - (self.v - y)).clamp(0.0, 0.2).unsqueeze(1),
                0.96 * shades * cover(lens, self.soft),
            )
            canvas = paint(canvas, torch.ones_like(frame), 0.10 * clear * cover(lens, self.soft))
            bars = torch.minimum(bars, lens.abs() - 0.013)
            ends.append((x, y, 0.135 * facing))
            ear = side * self.width - 0.05 * self.turn
            reach = segment(self.u, self.v, x + side * 0.135 * facing, y - 0.02, ear, y - 0.01)
            bars = torch.minimum(bars, torch.maximum(reach - 0.010, self.head_distance))
        (lx, ly, lw), (rx, _, rw) = ends
        bars = torch.minimum(bars, segment(self.u, self.v, lx + lw, ly - 0.02, rx - rw, ly - 0.02) - 0.012)
        return paint(canvas, frame, (clear + shades) * cover(bars, self.soft))

    def _hat(self, canvas: Tensor) -> Tensor:
        wears = _plane((self.scene.accessory == 3).to(self.u))  # (B, 1, 1)
        half, top, _ = self._hair_outline()
        cx, zero = 0.10 * self.turn, torch.zeros_like(half)
        cuff_y = -self.height * 0.66 + 0.25 * torch.sin(self.pitch)
        wool = torch.tensor([0.10, 0.45, 0.50], device=self.u.device).view(1, 3, 1, 1)
        knit = 1.0 + 0.07 * torch.sin((self.u - cx) * 46.0).unsqueeze(1)  # (B, 1, H, W)
        light = (
            self.shade(((self.u - cx) / half * 0.9).clamp(-0.95, 0.95), (self.v / 0.8).clamp(-0.9, 0.9))
            * knit
        )
        bobble = ellipse(self.u, self.v, cx * 0.5, top - 0.13, zero + 0.105, zero + 0.100)
        canvas = paint(
            canvas,
            torch.tensor([0.96, 0.92, 0.82], device=self.u.device).view(1, 3, 1, 1) * light,
            wears * cover(bobble, self.soft * 2.0),
        )
        dome = ellipse(self.u, self.v, cx * 0.6, cuff_y, half * 1.05, cuff_y - top + 0.10, 2.2)
        dome = torch.maximum(dome, self.v - cuff_y)
        canvas = paint(canvas, wool * light, wears * cover(dome, self.soft))
        bend = 0.10 * ((self.u - cx) / half) ** 2
        cuff = torch.maximum(
            (self.v - cuff_y + bend - 0.02).abs() - 0.075, (self.u - cx * 0.8).abs() - half * 1.07
        )
        return paint(canvas, wool * 0.72 * light, wears * cover(cuff, self.soft))

    def _to_pixels(self, x: Tensor, y: Tensor) -> Tensor:
        """Head frame -> pixels, (B, 2)."""
        cos, sin = torch.cos(self.roll), torch.sin(self.roll)
        u = (cos * x - sin * y) * self.zoom + self.shift_x
        v = (sin * x + cos * y) * self.zoom + self.shift_y
        return (torch.cat([u, v], dim=-1).flatten(1) + 1.0) / 2.0 * self.size

    def _landmarks(self) -> Tensor:
        points = [self.project(side * self.eye_x, self.eye_y)[:2] for side in (-1.0, 1.0)]
        points.append(self.project(0.0, self.nose_y, 0.11)[:2])
        mx, my, facing = self.project(0.0, self.mouth_y, 0.02)
        corner = my - 0.55 * self.smile
        points += [(mx + side * self.mouth_w * facing, corner) for side in (-1.0, 1.0)]
        return torch.stack([self._to_pixels(x, y) for x, y in points], dim=1)  # (B, 5, 2)

    def _boxes(self) -> Tensor:
        middle = self._to_pixels(0.05 * self.turn, 0.04 * self.height)  # (B, 2)
        half = torch.cat([self.width * 1.02, self.height * 0.98], dim=-1).flatten(1) * self.zoom.flatten(1)
        half = half * (self.size / 2.0)  # (B, 2)
        return torch.cat([middle - half, middle + half], dim=1)  # (B, 4)
