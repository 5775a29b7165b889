"""The picture of the photos: the colours say which face was used, at any photo size."""

import numpy as np
import pytest
import torch

from difflora.face_quality import FaceQuality
from difflora.faces import Face, FaceReport
from difflora.features import IdentityFeatures
from difflora.reference_sheet import OTHER, REJECTED, TAKEN, TILE, draw_references
from difflora.references import References

QUALITY = FaceQuality(50.0, 0.5, 0.9, 0.8)


def references(size: int, *used: bool, others: int = 0) -> References:
    """Grey photos with a face in the middle, used or not, and other people's faces beside it."""

    def face(x: float) -> Face:
        left, right = x * size, (x + 0.3) * size
        return Face((left, 0.4 * size, right, 0.8 * size), 0.9, ((left, 0.5 * size),) * 5)

    reports = tuple(
        FaceReport(i, u, "because " + "of a long reason " * 6, 1 + others, face(0.5))
        for i, u in enumerate(used)
    )
    photos = tuple(np.full((size, size, 3), 128, np.uint8) for _ in used)
    found = tuple((face(0.5), *(face(0.1) for _ in range(others))) for _ in used)
    features = IdentityFeatures(torch.eye(512)[: sum(used)], torch.zeros(sum(used), 4), reports)
    return References(features, photos, found, (QUALITY,) * len(used), torch.eye(len(used)), ())


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour)).all(-1).sum())


@pytest.mark.parametrize("size", [32, 320, 3000])
def test_lines_are_as_wide_whatever_the_size_of_the_photo(size: int) -> None:
    sheet = np.array(draw_references(references(size, True)))
    box = 2 * (0.3 + 0.4) * TILE * 3  # circumference times width
    assert TILE < sheet.shape[1] < TILE + 80
    assert count(sheet[:TILE], TAKEN) == pytest.approx(box, rel=0.25)
    assert count(sheet, REJECTED) == count(sheet, OTHER) == 0


def test_colours_say_what_became_of_a_face() -> None:
    sheet = np.array(draw_references(references(200, True, False, others=1)))
    left, right = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
    assert count(left, TAKEN) > 1000 and count(left, REJECTED) == 0 and count(left, OTHER) > 1000
    assert count(right, REJECTED) > 1000 and count(right, TAKEN) == 0


def test_many_photos_are_a_grid() -> None:
    one, seven = (draw_references(references(64, *[True] * n)) for n in (1, 7))
    assert 2.5 * one.width < seven.width < 3.2 * one.width and seven.height > 2.5 * one.height


def test_a_face_that_leaves_the_photo_is_drawn_inside() -> None:
    read = references(100, True)
    outside = Face((-50.0, -50.0, 400.0, 400.0), 0.9, ((0.0, 0.0),) * 5)
    read = References(
        IdentityFeatures(torch.eye(512)[:1], torch.zeros(1, 4), (FaceReport(0, True, "large", 1, outside),)),
        read.photos,
        ((outside,),),
        read.qualities,
        read.similarity,
        (),
    )
    assert count(np.array(draw_references(read))[:TILE], TAKEN) > 4 * TILE
