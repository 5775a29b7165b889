"""The geometry and the light of synthetic people: where everything lies, before anything is painted.

Units: the picture spans [-1, 1] in u (right) and v (down). Angles are radians.
Letters: B pictures, H x W pixels, I identity traits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .people import TRAIT_INDEX
from .scenes import JITTER, Scene
from .shapes import palette

SKIN = ((0.30, 0.19, 0.14), (0.50, 0.32, 0.22), (0.72, 0.50, 0.36), (0.91, 0.71, 0.57), (0.98, 0.86, 0.77))
HAIR = (
    (0.08, 0.07, 0.08),
    (0.23, 0.14, 0.10),
    (0.42, 0.24, 0.13),
    (0.66, 0.28, 0.11),
    (0.89, 0.68, 0.32),
    (0.93, 0.89, 0.80),
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


def table(rows: tuple[tuple[float, ...], ...], index: Tensor, like: Tensor) -> Tensor:
    """Rows of a constant table: index (B,) -> (B, columns), on the device and in the type of ``like``."""
    return torch.tensor(rows, device=like.device, dtype=like.dtype)[index]  # (B, columns)


def plane(column: Tensor) -> Tensor:
    """One number per picture, (B,), shaped to meet planes of pixels: (B, 1, 1)."""
    return column[:, None, None]  # (B, 1, 1)


class Figure:
    """A person in a scene, B of them: an ellipsoid head that yaw and pitch turn.

    Layers read it, none writes.

    Attributes by what they hold:
        expression, (B, 1, 1): ``smile``, ``open`` (mouth), ``raised`` and ``frown`` (brows), ``grin`` (mouth
            width), ``eye_open``.
        pose, (B, 1, 1): ``yaw``, ``turn`` = sin(yaw), ``pitch``, ``roll``, ``zoom``, ``shift_x, shift_y``.
        sizes in the head's frame, (B, 1, 1): ``width`` and ``height`` (half axes), ``jaw``, ``eye_x``,
            ``eye_y``, ``eye_a``, ``nose_y``, ``mouth_y``, ``mouth_w``; ``depth`` is a number.
        pixels: ``screen_u``, ``screen_v`` (H, W) of the picture; ``body_u``, ``body_v`` (B, H, W) after shift
            and zoom; ``u``, ``v`` (B, H, W) in the head's frame, after roll too; ``soft``, an edge's width.
        head: ``head_distance`` (B, H, W), negative inside; ``face_light`` (B, 1, H, W).
        colour: ``skin``, ``hair``, ``dark`` (brows, beard) (B, 3, 1, 1); ``strands`` (B, 1, H, W), which
            modulates the hair; ``light`` (B, 5), rows of LIGHT; ``tint`` (B, 3, 1, 1) of the light.
        jitter: name -> (B,).
    """

    def __init__(self, traits: Tensor, scene: Scene, size: int) -> None:
        """Settle the geometry.

        Args:
            traits: (B, I) in [-1, 1].
            scene: B scenes.
            size: H and W, pixels.
        """
        self.traits, self.scene, self.size = traits, scene, size
        self.soft = 2.6 / size  # edge width: 1.3 pixels
        self.jitter = {name: scene.jitter[:, i].to(traits) for i, name in enumerate(JITTER)}
        strength = plane(1.0 + 0.15 * self.jitter["strength"])
        mood = table(EXPRESSION, scene.expression, traits)  # (B, 6)
        self.smile, self.open, self.raised, self.frown, eye_open, self.grin = (
            plane(mood[:, i]) for i in range(6)
        )
        self.smile, self.open, self.frown = self.smile * strength, self.open * strength, self.frown * strength
        self.eye_open = 1.0 + (eye_open - 1.0) * strength

        yaw = table(tuple((y,) for y in YAW), scene.pose, traits)[:, 0] + 0.13 * self.jitter["yaw"]
        self.yaw, self.pitch = plane(yaw), plane(0.14 * self.jitter["pitch"])
        self.turn = torch.sin(self.yaw)  # (B, 1, 1)
        self.roll = plane(0.10 * self.jitter["roll"])
        self.zoom = plane(1.20 + 0.07 * self.jitter["zoom"])
        self.shift_x = plane(0.05 * self.jitter["shift_x"])
        self.shift_y = plane(0.04 * self.jitter["shift_y"]) + 0.04
        self._set_head_size()
        self._set_pixel_grid()
        self._set_light()
        self._set_colours()
        self._set_head_outline()

    def trait(self, name: str) -> Tensor:
        """(B, 1, 1) value of one trait."""
        return plane(self.traits[:, TRAIT_INDEX[name]])

    def _set_head_size(self) -> None:
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

    def _set_pixel_grid(self) -> None:
        line = (
            torch.arange(self.size, device=self.traits.device, dtype=self.traits.dtype) + 0.5
        ) / self.size * 2 - 1
        self.screen_v, self.screen_u = torch.meshgrid(line, line, indexing="ij")  # (H, W) twice
        x = (self.screen_u - self.shift_x) / self.zoom  # (B, H, W)
        y = (self.screen_v - self.shift_y) / self.zoom  # (B, H, W)
        self.body_u, self.body_v = x, y
        cos, sin = torch.cos(self.roll), torch.sin(self.roll)
        self.u, self.v = cos * x + sin * y, cos * y - sin * x  # (B, H, W) in the head's frame

    def _set_light(self) -> None:
        self.light = table(LIGHT, self.scene.light, self.traits)  # (B, 5)
        self.tint = table(TINT, self.scene.light, self.traits)[:, :, None, None]  # (B, 3, 1, 1)

    def _set_colours(self) -> None:
        self.skin = palette(SKIN, self.traits[:, TRAIT_INDEX["skin_tone"]])  # (B, 3, 1, 1)
        warm = self.trait("skin_warmth").unsqueeze(1)
        self.skin = self.skin * torch.cat([1 + 0.04 * warm, 1 - 0.0 * warm, 1 - 0.10 * warm], dim=1)
        self.hair = palette(HAIR, self.traits[:, TRAIT_INDEX["hair_tone"]])
        warm = self.trait("hair_warmth").unsqueeze(1)
        self.hair = self.hair * torch.cat([1 + 0.16 * warm, 1 - 0.02 * warm, 1 - 0.22 * warm], dim=1)
        self.dark = self.hair * 0.62 * (1 - 0.25 * self.hair.mean(1, keepdim=True))  # brows, beard
        self.strands = self._hair_strands()  # (B, 1, H, W)

    def _hair_strands(self) -> Tensor:
        """Lighter and darker strands with a glossy band, (B, 1, H, W)."""
        angle = torch.atan2(self.u - 0.25 * self.turn, -(self.v - 0.15))  # (B, H, W)
        wave = self.trait("hair_curl").add(1.0).mul(0.5)  # (B, 1, 1)
        strands = torch.sin(angle * 21.0 + wave * 3.2 * torch.sin(self.v * 15.0))  # (B, H, W)
        height = -(self.v + 0.36 * self.height / 0.475) * 6.5
        gloss = torch.exp(-((height - 1.0) ** 2))  # (B, H, W)
        return (1.0 + 0.10 * strands + 0.20 * gloss).unsqueeze(1)

    def _set_head_outline(self) -> None:
        below = (self.v / self.height).clamp(0.0, 1.0)  # (B, H, W)
        centre = self.turn * (0.02 + 0.10 * below)
        width = self.width * (1.0 - (1.0 - self.jaw) * below**1.4)  # (B, H, W)
        chin = (self.trait("chin") + 1.0) / 2.0
        tall = self.height * (1.0 + 0.05 * chin)
        x, y = (self.u - centre) / width, self.v / tall  # (B, H, W)
        power = 2.55 - 0.70 * chin * (below > 0)
        radius = (x.abs().clamp_min(1e-4) ** power + y.abs().clamp_min(1e-4) ** power) ** (1.0 / power)
        self.head_distance = (radius - 1.0) * self.width  # (B, H, W)
        self.face_light = self.shade((x * 0.90).clamp(-0.98, 0.98), (y * 0.72).clamp(-0.95, 0.95))

    def project(
        self, x: Tensor | float, y: Tensor | float, out: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A point of the frontal face -> x, y after yaw and pitch, foreshortening of x; (B, 1, 1) each."""
        x = torch.as_tensor(x, device=self.traits.device, dtype=self.traits.dtype) + 0.0 * self.yaw
        y = torch.as_tensor(y, device=self.traits.device, dtype=self.traits.dtype) + 0.0 * self.yaw
        flat = (1.0 - (x / self.width) ** 2 - (y / self.height) ** 2).clamp_min(0.05)
        z = self.depth * torch.sqrt(flat) + out  # (B, 1, 1)
        px = x * torch.cos(self.yaw) + z * self.turn
        facing = (z * torch.cos(self.yaw) - x * self.turn) / z
        py = y * torch.cos(self.pitch) + z * torch.sin(self.pitch)
        return px, py, facing.clamp(0.30, 1.15)

    def shade(self, normal_x: Tensor, normal_y: Tensor) -> Tensor:
        """Lambert shading of a rounded surface: x and y of its unit normal, (B, H, W) -> (B, 1, H, W)."""
        normal_z = torch.sqrt((1.0 - normal_x**2 - normal_y**2).clamp_min(0.02))  # (B, H, W)
        lx, ly, lz, ambient, diffuse = (plane(self.light[:, i]) for i in range(5))
        lambert = (normal_x * lx + normal_y * ly + normal_z * lz).clamp_min(0.0)  # (B, H, W)
        return (ambient + diffuse * lambert).unsqueeze(1)

    def to_pixels(self, x: Tensor, y: Tensor) -> Tensor:
        """Head frame -> pixels, (B, 2)."""
        cos, sin = torch.cos(self.roll), torch.sin(self.roll)
        u = (cos * x - sin * y) * self.zoom + self.shift_x
        v = (sin * x + cos * y) * self.zoom + self.shift_y
        return (torch.cat([u, v], dim=-1).flatten(1) + 1.0) / 2.0 * self.size

    def landmarks(self) -> Tensor:
        """(B, 5, 2) pixels: left and right eye of the picture, nose tip, left and right mouth corner."""
        points = [self.project(side * self.eye_x, self.eye_y)[:2] for side in (-1.0, 1.0)]
        points.append(self.project(0.0, self.nose_y, 0.11)[:2])
        mx, my, facing = self.project(0.0, self.mouth_y, 0.02)
        corner = my - 0.55 * self.smile
        points += [(mx + side * self.mouth_w * facing, corner) for side in (-1.0, 1.0)]
        return torch.stack([self.to_pixels(x, y) for x, y in points], dim=1)  # (B, 5, 2)

    def boxes(self) -> Tensor:
        """(B, 4) x0 y0 x1 y1 of the faces, in pixels."""
        middle = self.to_pixels(0.05 * self.turn, 0.04 * self.height)  # (B, 2)
        half = torch.cat([self.width * 1.02, self.height * 0.98], dim=-1).flatten(1) * self.zoom.flatten(1)
        half = half * (self.size / 2.0)  # (B, 2)
        return torch.cat([middle - half, middle + half], dim=1)  # (B, 4)
