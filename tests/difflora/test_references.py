"""Reference photos: which face, whether it is the same person, and what the report says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from difflora.errors import DiffLoRAError, NoFaceError
from difflora.faces import FaceAnalyzer
from difflora.features import encode_photos
from difflora.references import PhotoChoice, find_outliers, read_references
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import sample_scenes, scene_for

PACK = Path(__file__).resolve().parents[2] / "difflora" / "synthetic" / "weights" / "face_pack"
EMPTY = np.full((96, 96, 3), 90, np.uint8)


class Encoder:
    """Image features: the mean colour of each crop."""

    def encode(self, crops):
        return torch.stack([torch.from_numpy(crop).float().mean((0, 1)) for crop in crops])


@pytest.fixture(scope="module")
def analyzer() -> FaceAnalyzer:
    return FaceAnalyzer(PACK, providers=["CPUExecutionProvider"])


def portrait(person: int, seed: int | None = None) -> np.ndarray:
    scene = scene_for(expression="smiling") if seed is None else sample_scenes(1, seed)
    picture = render(sample_people("test", person, 1), scene, PHOTO_PX).pictures[0]
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def smaller(photo: np.ndarray) -> np.ndarray:
    framed = np.full_like(photo, 128)
    framed[:108, :108] = np.array(Image.fromarray(photo).resize((108, 108), Image.Resampling.LANCZOS))
    return framed


@pytest.fixture(scope="module")
def two() -> np.ndarray:
    """A small person 0 on the left, person 1 large on the right."""
    return np.concatenate([smaller(portrait(0)), portrait(1)], axis=1)


def person_in(analyzer: FaceAnalyzer, face_embedding: torch.Tensor) -> int:
    own = analyzer.analyze([portrait(0), portrait(1)])[0]
    return int((own @ face_embedding[0]).argmax())


@pytest.mark.parametrize(
    ("choice", "person", "words"),
    [
        ({}, 1, "2 faces found, the largest was taken"),
        ({"index": 1}, 0, r"number 1 \(largest\)"),
        ({"face": "left to right"}, 0, r"number 0 \(left to right\)"),
        ({"face": "left to right", "index": 1}, 1, r"number 1 \(left to right\)"),
        ({"face": "most like the example", "example": 0}, 0, "most like the example was taken"),
        ({"face": "most like the example", "example": 1}, 1, "most like the example was taken"),
    ],
)
def test_which_face(analyzer: FaceAnalyzer, two: np.ndarray, choice: dict, person: int, words: str) -> None:
    if "example" in choice:
        choice = {**choice, "example": portrait(choice["example"], seed=4)}
    read = read_references(two, analyzer, Encoder(), PhotoChoice(**choice))
    assert person_in(analyzer, read.features.face_embedding) == person
    assert len(read.found[0]) == 2
    assert re.search(words, read.report())


def test_the_surest_face(analyzer: FaceAnalyzer, two: np.ndarray) -> None:
    read = read_references(two, analyzer, Encoder(), PhotoChoice(face="highest score"))
    scores = [face.score for face in read.found[0]]
    assert scores == sorted(scores, reverse=True)
    assert read.features.faces[0].face == read.found[0][0]


def test_by_default_it_reads_what_encode_photos_reads(analyzer: FaceAnalyzer) -> None:
    photos = [portrait(0, seed) for seed in (1, 2)]
    done: list[tuple[int, int]] = []
    read = read_references(photos, analyzer, Encoder(), progress=lambda *step: done.append(step))
    plain = encode_photos(photos, analyzer, Encoder())
    torch.testing.assert_close(read.features.face_embedding, plain.face_embedding)
    torch.testing.assert_close(read.features.image_features, plain.image_features)
    assert read.features.faces == plain.faces and read.features.weights is None
    assert done == [(1, 2), (2, 2)]
    assert [crop.shape for crop in read.crops] == [(224, 224, 3)] * 2


def test_a_photo_of_somebody_else_is_left_out(analyzer: FaceAnalyzer) -> None:
    photos = [portrait(0, 1), portrait(1, 2), portrait(0, 3), portrait(0, 4)]
    read = read_references(photos, analyzer, Encoder())
    assert [report.used for report in read.features.faces] == [True, False, True, True]
    assert len(read.features) == 3 == len(read.crops)
    assert "photo 2 of 4: not used, looks like another person: similarity" in read.report()
    assert read.similarity.shape == (4, 4) and read.similarity[0, 2] > read.similarity[0, 1]
    kept = read_references(photos, analyzer, Encoder(), PhotoChoice(outlier_ratio=0.0))
    assert len(kept.features) == 4


def test_of_two_people_in_two_photos_nobody_is_left_out_but_doubted(analyzer: FaceAnalyzer) -> None:
    read = read_references([portrait(0), portrait(1)], analyzer, Encoder())
    assert len(read.features) == 2
    assert "Do these photos show one person?" in read.report()
    same = read_references([portrait(0, 1), portrait(0, 2)], analyzer, Encoder())
    assert same.doubt() == ""


def test_photos_without_the_face(analyzer: FaceAnalyzer, two: np.ndarray) -> None:
    with pytest.raises(NoFaceError, match=r"no face found in photo 2 of 2.*skipped"):
        read_references([portrait(0), EMPTY], analyzer, Encoder())
    with pytest.raises(NoFaceError, match="no face number 1: only 1 found"):
        read_references([two, portrait(0)], analyzer, Encoder(), PhotoChoice(index=1))
    read = read_references([EMPTY, portrait(0)], analyzer, Encoder(), PhotoChoice(on_missing="skip"))
    assert [report.used for report in read.features.faces] == [False, True]
    assert read.qualities[0] is None and read.similarity[0].isnan().all()
    assert re.search(r"photo 1 +- +-\n", read.report()) and "photo 1 of 2: not used" in read.report()
    with pytest.raises(NoFaceError, match="none of 1 photos"):
        read_references(EMPTY, analyzer, Encoder(), PhotoChoice(on_missing="skip"))
    with pytest.raises(NoFaceError, match="in the example"):
        choice = PhotoChoice(face="most like the example", example=EMPTY)
        read_references(portrait(0), analyzer, Encoder(), choice)


def test_a_blurred_photo_counts_less(analyzer: FaceAnalyzer) -> None:
    blurred = np.array(Image.fromarray(portrait(0)).filter(ImageFilter.GaussianBlur(3)))
    read = read_references([portrait(0), blurred], analyzer, Encoder(), PhotoChoice(by_quality=True))
    sharp, soft = read.features.weights.tolist()
    assert sharp > 1 > soft > 0 and sharp + soft == pytest.approx(2)
    assert read.qualities[0].sharpness > read.qualities[1].sharpness
    assert f"used with weight {soft:.2f}" in read.report()


def cosines(*groups: int, inside: float = 0.9, between: float = 0.0) -> torch.Tensor:
    """(F, F) of groups of people of these sizes."""
    person = torch.cat([torch.full((size,), float(i)) for i, size in enumerate(groups)])
    matrix = torch.where(person[:, None] == person, inside, between)
    return matrix.fill_diagonal_(1.0)


@pytest.mark.parametrize(
    ("groups", "outliers"),
    [((1,), []), ((1, 1), []), ((3,), []), ((2, 1), [2]), ((5, 1), [5]), ((5, 1, 1), [5, 6]), ((2, 2), [])],
)
def test_who_stands_out(groups: tuple[int, ...], outliers: list[int]) -> None:
    assert sorted(find_outliers(cosines(*groups))) == outliers


def test_a_group_that_does_not_belong_together_has_no_outliers() -> None:
    assert find_outliers(cosines(4, inside=-0.1)) == {}
    assert find_outliers(cosines(3, 1), ratio=0.0) == {}
    ((own, rest),) = find_outliers(cosines(3, 1, inside=0.8, between=0.1)).values()
    assert (own, rest) == (pytest.approx(0.1), pytest.approx(0.8))


def test_choices_that_cannot_be_meant() -> None:
    for wrong in ({"index": -1}, {"outlier_ratio": 1.5}, {"outlier_ratio": -0.1}):
        with pytest.raises(DiffLoRAError, match="the index counts from 0"):
            PhotoChoice(**wrong)
    with pytest.raises(DiffLoRAError, match="unknown order"):
        PhotoChoice(face="prettiest")
    with pytest.raises(DiffLoRAError, match="there is no example"):
        PhotoChoice(face="most like the example")
