"""How well a face can be read off a photo: size, sharpness, frontality, the detector's score.

Letters: S side of an aligned crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .faces import Face, FaceAnalyzer

ALIGNED_PX = 112
"""Side of the crop that a recogniser sees: a face smaller than this is blown up for it."""
BLUR_WIDTH = 9
"""Pixels of the box filter by which `sharpness` blurs again (Crete et al. 2007, section 2)."""
WORST = 0.25
"""A factor of a weight does not fall below this: even a poor photo of the right person says something."""


@dataclass(frozen=True)
class FaceQuality:
    """Measures of one face in one photo.

    Args:
        size: shorter side of its box in pixels.
        sharpness: 0 .. 1, see `sharpness`.
        frontality: 0 .. 1, see `frontality`.
        score: the detector's, 0 .. 1.
    """

    size: float
    sharpness: float
    frontality: float
    score: float

    def __str__(self) -> str:
        """The four measures, for a report."""
        return (
            f"face {self.size:.0f} px, detector {self.score:.2f}, sharpness {self.sharpness:.2f}, "
            f"frontality {self.frontality:.2f}"
        )


def measure_quality(photo: np.ndarray, face: Face, face_analyzer: FaceAnalyzer) -> FaceQuality:
    """Measure a face.

    Args:
        photo: (H, W, 3) uint8 RGB.
        face: found in it.
        face_analyzer: aligns it.
    """
    left, top, right, bottom = face.box
    crop = face_analyzer.align(photo, face.landmarks, ALIGNED_PX)  # (112, 112, 3)
    size = min(right - left, bottom - top)
    return FaceQuality(size, sharpness(crop), frontality(face.landmarks), face.score)


def sharpness(crop: np.ndarray) -> float:
    """How much detail one more blur destroys: much of a sharp picture's, little of a blurred one's.

    1 minus the no-reference blur metric of Crete et al. 2007, "The blur effect": the smaller of what remains
    of neighbours' differences along x and along y.

    Args:
        crop: (S, S, 3) uint8 RGB.

    Returns:
        0 (blurred, or one colour) .. 1.
    """
    grey = torch.from_numpy(crop).float().mean(dim=-1)[None, None] / 255.0  # (1, 1, S, S)
    lost = []
    for turned in (grey, grey.transpose(2, 3)):
        padded = functional.pad(turned, (0, 0, BLUR_WIDTH // 2, BLUR_WIDTH // 2), mode="replicate")
        blurred = functional.avg_pool2d(padded, (BLUR_WIDTH, 1), stride=1)  # (1, 1, S, S)
        before, after = turned.diff(dim=2).abs(), blurred.diff(dim=2).abs()  # (1, 1, S - 1, S)
        total = float(before.sum())
        lost.append(float((before - after).clamp_min(0.0).sum()) / total if total > 0 else 0.0)
    return min(lost)


def frontality(landmarks: tuple[tuple[float, float], ...]) -> float:
    """1 if the nose lies midway between the eyes, 0 if it lies under an eye or further out.

    The eyes' line is the axis, so that a tilted head is no worse.

    Args:
        landmarks: as in ``Face``.
    """
    (left_x, left_y), (right_x, right_y), (nose_x, nose_y) = landmarks[:3]
    across, down = right_x - left_x, right_y - left_y
    square = across * across + down * down
    if square == 0.0:
        return 0.0
    place = ((nose_x - left_x) * across + (nose_y - left_y) * down) / square  # 0 at one eye, 1 at the other
    return max(0.0, 1.0 - 2.0 * abs(place - 0.5))


def quality_weight(quality: FaceQuality, sharpest: float) -> float:
    """How much a photo should count among the photos of a person: WORST ** 3 .. 1, ours.

    Each of size, sharpness and frontality is a factor, 1 at `ALIGNED_PX`, at the sharpest photo's, at a
    frontal face.

    Args:
        quality: of the photo's face.
        sharpest: the best sharpness among the photos; the measure has no absolute scale.
    """
    parts = (quality.size / ALIGNED_PX, quality.sharpness / max(sharpest, 1e-6), quality.frontality)
    return math.prod(min(max(part, WORST), 1.0) for part in parts)
