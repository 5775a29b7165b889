"""Pictures for the face models: pools, degradations, canvases and what each anchor should say."""

import pytest
import torch

from difflora.synthetic.detector import FACE_SIDES, STRIDES, anchors
from training.face_data import Canvases, assign, backdrops, coarsen, compose, degrade, load_pool, shake


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return load_pool(tmp_path_factory.mktemp("pool"), "validation", 4, 3, 64)


def test_a_pool_is_read_back_as_it_was_rendered(pool, tmp_path) -> None:
    first = load_pool(tmp_path, "validation", 4, 3, 64)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    again = load_pool(tmp_path, "validation", 4, 3, 64)
    assert path.stat().st_mtime_ns == stamp
    assert torch.equal(first.pictures, again.pictures) and torch.equal(pool.pictures, again.pictures)
    assert torch.equal(again.traits[0], again.traits[2]) and not torch.equal(again.traits[2], again.traits[3])


def test_a_pair_shows_one_person_twice(pool, generator: torch.Generator) -> None:
    first, second = pool.pairs(4, generator)
    assert torch.equal(first // 3, second // 3)
    assert (first != second).all()
    assert len((first // 3).unique()) == 4


def test_degraded_pictures_stay_pictures(pool, generator: torch.Generator) -> None:
    pictures = pool.unit(torch.arange(12))
    for changed in (degrade(pictures, generator), shake(pictures, generator)):
        assert changed.shape == pictures.shape
        assert changed.min() >= 0 and changed.max() <= 1
        assert 0 < (changed - pictures).abs().mean() < 0.15
    assert backdrops(20, 32, generator).shape == (20, 3, 32, 32)


def test_a_whole_picture_on_a_canvas_keeps_its_places(pool) -> None:
    canvases = compose(pool, 40, torch.Generator().manual_seed(1), side=128)
    assert canvases.pictures.shape == (40, 3, 128, 128)
    whole = canvases.state[:, 0] == 1
    assert whole.any()
    for row in whole.nonzero()[:, 0].tolist():
        box, landmarks = canvases.boxes[row, 0], canvases.landmarks[row, 0]
        assert (landmarks >= box[:2]).all() and (landmarks <= box[2:]).all()
    assert (canvases.state.amax(1) <= 0).any(), "some canvases have nobody to find"
    assert ((canvases.state == 1).sum(1) > 1).any(), "some have several people"


def test_each_face_goes_to_anchors_of_its_size() -> None:
    sides = torch.tensor([18.0, 30.0, 50.0, 80.0, 120.0, 200.0])  # one for each kind
    centre = torch.full((6, 2), 131.0)
    boxes = torch.cat([centre - sides[:, None] / 2, centre + sides[:, None] / 2], dim=1)
    canvases = Canvases(
        torch.zeros(6, 3, 256, 256), boxes[:, None], torch.zeros(6, 1, 5, 2), torch.ones(6, 1)
    )
    targets = assign(canvases)
    centres, strides, kinds = anchors(256, 256)
    assert len(FACE_SIDES) + 1 == 2 * len(STRIDES) == 6
    for row in range(6):
        chosen = targets.label[row] == 1
        assert chosen.any()
        assert kinds[chosen].unique().tolist() == [row]
        assert ((centres[chosen] - 131.0).abs().amax(1) < strides[chosen]).all()
    hidden = assign(Canvases(canvases.pictures, canvases.boxes, canvases.landmarks, -torch.ones(6, 1)))
    assert not (hidden.label == 1).any()
    assert (hidden.label == -1).any(dim=1).all()


def test_coarse_pictures_are_half_as_sharp(pool, generator: torch.Generator) -> None:
    pictures = pool.unit(torch.arange(12))
    coarse = coarsen(pictures, generator, share=0.5)
    changed = (coarse != pictures).flatten(1).any(1)
    assert 0 < changed.sum() < 12
    assert coarse.diff(dim=-1).abs().mean() < pictures.diff(dim=-1).abs().mean()
