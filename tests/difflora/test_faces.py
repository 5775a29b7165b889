"""Faces in photos, with the shipped face pack, through the insightface library."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from difflora.errors import FaceModelError, NoFaceError
from difflora.face_packs import find_face_pack
from difflora.faces import FaceAnalyzer, FaceReport
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import sample_scenes, scene_for

PACK = Path(__file__).resolve().parents[2] / "difflora" / "synthetic" / "weights" / "face_pack"


@pytest.fixture(scope="module")
def analyzer() -> FaceAnalyzer:
    return FaceAnalyzer(PACK, providers=["CPUExecutionProvider"])


def portrait(person: int = 0, scene=None) -> np.ndarray:
    """(64, 64, 3) uint8 of somebody whom no model was trained on."""
    picture = render(sample_people("test", person, 1), scene or scene_for(expression="smiling")).pictures[0]
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def enlarged(picture: np.ndarray, times: int) -> np.ndarray:
    return picture.repeat(times, 0).repeat(times, 1)


def test_one_person_is_more_like_themselves_than_like_another(analyzer: FaceAnalyzer) -> None:
    scenes = sample_scenes(2, seed=5)
    photos = [portrait(0, scenes[:1]), portrait(0, scenes[1:]), portrait(1, scenes[:1])]
    embedding, faces = analyzer.analyze(photos)
    assert embedding.shape == (3, 512)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert embedding[0] @ embedding[1] > embedding[0] @ embedding[2] + 0.3
    assert all(report.used and report.num_faces == 1 for report in faces)


def test_many_photos_at_once_equal_one_by_one(analyzer: FaceAnalyzer) -> None:
    photos = [portrait(person) for person in range(3)]
    together, _ = analyzer.analyze(photos)
    alone = torch.cat([analyzer.analyze([photo])[0] for photo in photos])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_the_largest_of_several_faces_is_taken_and_the_report_says_so(analyzer: FaceAnalyzer) -> None:
    photo = np.zeros((128, 192, 3), np.uint8)
    photo[:, 64:] = enlarged(portrait(2), 2)
    photo[30:94, :64] = portrait(3)
    _, (report,) = analyzer.analyze([photo])
    assert report.num_faces == 2
    assert "largest" in report.reason
    assert report.face is not None and report.face.box[0] > 64
    own, _ = analyzer.analyze([portrait(2)])
    both, _ = analyzer.analyze([photo])
    assert (own @ both.T).item() > 0.8


@pytest.mark.parametrize("times", [1, 3, 8])
def test_any_photo_size(analyzer: FaceAnalyzer, times: int) -> None:
    small, _ = analyzer.analyze([portrait(4)])
    large, _ = analyzer.analyze([enlarged(portrait(4), times)])
    assert (small @ large.T).item() > 0.8


def test_a_close_up_is_found(analyzer: FaceAnalyzer) -> None:
    photo = portrait(5, scene_for())
    (face,) = analyzer.detect(photo)
    left, top, right, bottom = (round(value) for value in face.box)
    close = enlarged(photo[top - 1 : bottom + 1, left - 1 : right + 1], 4)
    embedding, _ = analyzer.analyze([close])
    assert (embedding @ analyzer.analyze([photo])[0].T).item() > 0.6


def test_photos_without_a_face(analyzer: FaceAnalyzer) -> None:
    empty = np.full((80, 80, 3), 90, np.uint8)
    with pytest.raises(NoFaceError, match=r"photo 2 of 2: use a sharp"):
        analyzer.analyze([portrait(), empty])
    embedding, faces = analyzer.analyze([empty, portrait()], on_missing="skip")
    assert embedding.shape == (1, 512)
    assert faces[0] == FaceReport(0, False, "no face found", 0)
    with pytest.raises(NoFaceError, match="any of 1 photos"):
        analyzer.analyze([empty], on_missing="skip")


def test_an_aligned_face_has_its_eyes_in_the_recognisers_places(analyzer: FaceAnalyzer) -> None:
    # insightface's template for 112 px: eyes, nose, corners of the mouth
    template = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = 1.5 * template @ turn.T + [90, 20]  # turned, scaled and moved
    photo = np.zeros((300, 300, 3), np.uint8)
    x, y = landmarks[0].round().astype(int)
    photo[y - 4 : y + 5, x - 4 : x + 5] = (255, 0, 0)  # a red eye
    crop = analyzer.align(photo, landmarks, 224)
    assert crop.shape == (224, 224, 3) and crop[..., 1:].max() == 0  # red stays red
    rows, columns = np.nonzero(crop[..., 0] > 128)
    assert (columns.mean(), rows.mean()) == pytest.approx(tuple(2 * template[0]), abs=1.5)


def test_the_fingerprint_is_of_the_recognisers_weights(analyzer: FaceAnalyzer) -> None:
    content = (find_face_pack(PACK).folder / "recognition.onnx").read_bytes()
    assert analyzer.fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_the_pack_is_found_where_people_unpack_it(tmp_path) -> None:
    nested = tmp_path / "antelopev2" / "antelopev2"
    nested.mkdir(parents=True)
    (nested / "scrfd.onnx").write_bytes(b"")
    assert find_face_pack(nested).folder == nested.resolve()
    assert find_face_pack(nested.parent).folder == nested.resolve()
    assert find_face_pack(PACK).name == "synthetic"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.onnx").write_bytes(b"")
    with pytest.raises(FaceModelError, match="several face packs: choose one of"):
        find_face_pack(tmp_path)


def test_packs_that_do_not_work_say_why(tmp_path) -> None:
    with pytest.raises(FaceModelError, match="no face pack at"):
        FaceAnalyzer(tmp_path / "missing")
    with zipfile.ZipFile(tmp_path / "buffalo_l.zip", "w") as archive:
        archive.writestr("det.onnx", b"")
    with pytest.raises(FaceModelError, match="unpack it first"):
        FaceAnalyzer(tmp_path / "buffalo_l.zip")
    with pytest.raises(FaceModelError, match=r"unpack buffalo_l\.zip there"):
        FaceAnalyzer(tmp_path)
    (tmp_path / "det.onnx").write_bytes(b"damaged")
    with pytest.raises(FaceModelError, match=r"cannot be loaded.*download it again"):
        FaceAnalyzer(tmp_path)
    pack = find_face_pack(PACK).folder
    for name, message in (("detection", "has no recogniser"), ("recognition", "has no detector")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(pack / f"{name}.onnx", folder)
        with pytest.raises(FaceModelError, match=message):
            FaceAnalyzer(folder)


def test_a_detection_size_of_ones_own(analyzer: FaceAnalyzer) -> None:
    fixed = FaceAnalyzer(PACK, "CPU", detection_size=256)
    assert fixed.name == "synthetic"
    (face,) = fixed.detect(portrait())
    (auto,) = analyzer.detect(portrait())
    assert np.abs(np.array(face.box) - auto.box).max() < 4
    with pytest.raises(FaceModelError, match="multiple of 32"):
        FaceAnalyzer(PACK, "CPU", detection_size=500)


def test_a_large_photo_is_averaged_not_sampled(analyzer: FaceAnalyzer) -> None:
    """Noise of single pixels, as every camera makes it, hardly matters; with plain sampling .955."""
    photo = portrait(1)
    (face,) = analyzer.detect(photo)
    noise = np.random.default_rng(0).normal(0, 25, (64 * 32, 64 * 32, 3))
    large = (enlarged(photo, 32) + noise).clip(0, 255).astype(np.uint8)
    found = analyzer.detect(large)[0]
    assert np.abs((np.array(found.box) + 0.5) / 32 - 0.5 - face.box).max() < 4
    landmarks = (np.array([face.landmarks]) + 0.5) * 32 - 0.5
    similarity = analyzer.embed([photo], np.array([face.landmarks])) @ analyzer.embed([large], landmarks).T
    assert similarity.item() > 0.975


def test_a_real_photograph_goes_through(analyzer: FaceAnalyzer) -> None:
    """The shipped pack has only seen rendered people: what it finds in a photograph is luck."""
    from insightface.data import get_image

    photo = get_image("t1", to_rgb=True)
    height, width = photo.shape[:2]
    faces = analyzer.detect(photo)
    assert faces == sorted(faces, key=lambda face: face.area, reverse=True)
    for face in faces:
        left, top, right, bottom = face.box
        assert left < right and top < bottom and 0.5 <= face.score <= 1
        assert 0 < (left + right) / 2 < width and 0 < (top + bottom) / 2 < height
    # the six heads, by eye, and close-ups of them: every attempt, border included, comes to an end
    for left, top in ((40, 250), (240, 80), (440, 250), (740, 290), (900, 20), (1120, 270)):
        close_up = np.ascontiguousarray(photo[top : top + 160, left : left + 160])
        for found in analyzer.detect(close_up):
            embedding = analyzer.embed([close_up], np.array([found.landmarks]))
            torch.testing.assert_close(embedding.norm(dim=1), torch.ones(1))
