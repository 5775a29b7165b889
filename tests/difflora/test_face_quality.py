"""Measures of a face: each falls when the photo gets worse in that one way."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from difflora.face_quality import WORST, FaceQuality, frontality, quality_weight, sharpness


def noise(seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((112, 112), Image.Resampling.NEAREST)


def test_blur_takes_sharpness_away() -> None:
    values = [sharpness(np.array(noise().filter(ImageFilter.GaussianBlur(sigma)))) for sigma in (0, 1, 3, 6)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * values[-1] > 0


def test_contrast_does_not_change_sharpness() -> None:
    picture = np.array(noise())
    assert sharpness(picture // 4) == pytest.approx(sharpness(picture), abs=0.02)


def test_one_colour_is_not_sharp() -> None:
    assert sharpness(np.full((112, 112, 3), 90, np.uint8)) == 0.0


@pytest.mark.parametrize(
    ("nose", "expected"), [(50.0, 1.0), (60.0, 0.5), (70.0, 0.0), (90.0, 0.0), (40.0, 0.5)]
)
def test_frontality_is_where_the_nose_lies_between_the_eyes(nose: float, expected: float) -> None:
    eyes = ((30.0, 40.0), (70.0, 40.0))
    assert frontality((*eyes, (nose, 60.0))) == pytest.approx(expected)


def test_a_tilted_head_is_as_frontal() -> None:
    angle = np.deg2rad(35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    upright = np.array([[30.0, 40.0], [70.0, 40.0], [55.0, 60.0]])
    tilted = tuple(map(tuple, (upright @ turn.T).tolist()))
    assert frontality(tilted) == pytest.approx(frontality(tuple(map(tuple, upright.tolist()))))
    assert frontality(((1.0, 1.0), (1.0, 1.0), (2.0, 2.0))) == 0.0  # no eyes to speak of


def test_weight_of_a_photo() -> None:
    assert quality_weight(FaceQuality(300, 0.4, 1.0, 0.9), sharpest=0.4) == 1.0
    assert quality_weight(FaceQuality(56, 0.4, 1.0, 0.9), sharpest=0.4) == pytest.approx(0.5)
    assert quality_weight(FaceQuality(300, 0.2, 0.5, 0.9), sharpest=0.4) == pytest.approx(0.25)
    assert quality_weight(FaceQuality(1, 0.0, 0.0, 0.0), sharpest=0.4) == WORST**3
