"""Likeness of pictures: the cosine to the person, 0 without a face."""

import numpy as np
import pytest
import torch

from difflora.errors import NoFaceError, PhotoError
from difflora.faces import FaceReport
from difflora.features import IdentityFeatures
from difflora.likeness import PROGRESS_STEP, measure_likeness


class Analyzer:
    """The "face" of a picture is its mean colour; a black one has none."""

    def analyze(self, photos, on_missing):
        assert on_missing == "skip"
        used = [photo.sum() > 0 for photo in photos]
        if not any(used):
            raise NoFaceError("no face")
        rows = [photo.mean((0, 1)) for photo, u in zip(photos, used, strict=True) if u]
        unit = torch.nn.functional.normalize(torch.tensor(np.array(rows)).float(), dim=-1)
        return torch.nn.functional.pad(unit, (0, 509)), tuple(
            FaceReport(i, bool(u), "", int(u)) for i, u in enumerate(used)
        )


def pictures(*colours: tuple[float, float, float]) -> torch.Tensor:
    """IMAGE (n, 40, 40, 3)."""
    return torch.tensor(colours, dtype=torch.float32)[:, None, None].expand(-1, 40, 40, -1)


RED = IdentityFeatures(torch.eye(512)[:1], torch.zeros(1, 4))


def test_pictures_without_a_face_count_as_zero() -> None:
    drawn = pictures((1, 0, 0), (0, 0, 0), (0.6, 0.8, 0), *[(0.0, 0.0, 0.0)] * PROGRESS_STEP)
    done: list[tuple[int, int]] = []
    likeness = measure_likeness(Analyzer(), RED, drawn, lambda *step: done.append(step))
    expected = [1.0, 0.0, 0.6] + [0.0] * PROGRESS_STEP
    torch.testing.assert_close(likeness.similarity, torch.tensor(expected), atol=1e-3, rtol=0)
    assert likeness.found.tolist() == [True, False, True] + [False] * PROGRESS_STEP
    assert likeness.mean == pytest.approx(1.6 / 7, abs=1e-3)
    assert done == [(4, 7), (7, 7)]
    report = likeness.report()
    assert "no face found in 5 of 7, counted as 0" in report and "picture 2: 0, no face found" in report
    assert "picture 3: 0.600" in report


def test_all_faces_found_says_nothing_about_missing_ones() -> None:
    likeness = measure_likeness(Analyzer(), RED, pictures((1, 0, 0)))
    assert likeness.report() == "similarity 1.000: mean of 1 picture\npicture 1: 1.000"


def test_unusable_pictures_say_which() -> None:
    with pytest.raises(PhotoError, match="photo 1 of 1"):
        measure_likeness(Analyzer(), RED, torch.zeros(1, 8, 8, 3))
