"""Draws the synthetic people: 2.5-D layers of soft shapes on an ellipsoid head, so that yaw gives parallax.

Letters: B pictures, H x W pixels, I identity traits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DiffLoRAError
from .face_layers import beard, brows, cheeks, eyes, head, mouth, nose
from .figure import Figure
from .outfit_layers import back_hair, background, body, ears, front_hair, glasses, hat
from .people import NUM_TRAITS
from .scenes import Scene
from .styles import in_style

PHOTO_PX = 128
"""Side of a reference photo: like real ones, it shows more than the base model draws."""
CHUNK = 32  # pictures drawn at once: keeps the planes in the cache; measured fastest of 8..128
LAYERS = (
    *(back_hair, body, ears, head, cheeks, beard, mouth, nose, eyes),
    *(front_hair, brows, glasses, hat),  # brows show through a fringe
)
"""What is painted over the background, back to front."""


@dataclass(frozen=True)
class Rendering:
    """Pictures (B, 3, H, W) in 0..1, face boxes (B, 4) x0 y0 x1 y1, landmarks (B, 5, 2) x y, in pixels.

    Landmarks: the eye on the left of the picture, the other eye, nose tip, left and right mouth corner.
    """

    pictures: Tensor
    boxes: Tensor
    landmarks: Tensor


def _draw(figure: Figure) -> Rendering:
    """Paint every layer, back to front, expose the picture in the scene's light, then give it its style."""
    canvas = background(figure)  # (B, 3, H, W)
    for layer in LAYERS:
        canvas = layer(figure, canvas)  # (B, 3, H, W)
    exposure = 1.0 + 0.05 * figure.jitter["level"][:, None, None, None]  # (B, 1, 1, 1)
    pictures = (canvas * figure.tint * exposure).clamp(0.0, 1.0)  # (B, 3, H, W)
    return Rendering(in_style(pictures, figure.scene.style), figure.boxes(), figure.landmarks())


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
        _draw(Figure(traits[i : i + CHUNK], scene[i : i + CHUNK], size)) for i in range(0, len(scene), CHUNK)
    ]
    return Rendering(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("pictures", "boxes", "landmarks"))
    )
