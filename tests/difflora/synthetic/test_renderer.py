import time

import pytest
import torch

from difflora.errors import DiffLoRAError
from difflora.synthetic.people import NUM_TRAITS, TRAITS, sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import ATTRIBUTES, sample_scenes, scene_for


def test_deterministic_and_in_range_at_any_size():
    traits, scene = sample_people("train", 0, 40), sample_scenes(40, seed=0)
    drawn = render(traits, scene)
    assert drawn.pictures.shape == (40, 3, 64, 64)
    assert 0 <= drawn.pictures.min() and drawn.pictures.max() <= 1
    assert torch.equal(drawn.pictures, render(traits, scene).pictures)
    alone = render(traits[35:36], scene[35:36])  # whoever else is drawn does not matter
    assert torch.allclose(alone.pictures, drawn.pictures[35:36], atol=1e-5)
    large = render(traits[:2], scene[:2], size=128)
    assert torch.allclose(large.boxes, 2 * drawn.boxes[:2]) and large.pictures.shape[-1] == 128


def test_every_trait_and_every_attribute_changes_the_picture():
    middle = torch.full((1, NUM_TRAITS), 0.1)
    plain = render(middle, scene_for()).pictures
    for index, trait in enumerate(TRAITS):
        changed = middle.clone()
        changed[0, index] = 0.9
        assert (render(changed, scene_for()).pictures - plain).abs().max() > 0.02, trait.name
    for name, words in ATTRIBUTES.items():
        drawn = [render(middle, scene_for(**{name: phrase})).pictures for phrase in words]
        assert min((a - b).abs().max() for i, a in enumerate(drawn) for b in drawn[:i]) > 0.05, name


def test_landmarks_lie_where_the_features_are():
    traits = sample_people("validation", 0, 30)
    traits[:, [i for i, t in enumerate(TRAITS) if t.name == "skin_tone"]] = 1.0
    drawn = render(traits, scene_for(30, seed=1))
    for picture, box, (left, right, nose, *mouth) in zip(
        drawn.pictures, drawn.boxes, drawn.landmarks, strict=True
    ):
        assert left[0] < nose[0] < right[0] and mouth[0][0] < mouth[1][0]
        assert left[1] < nose[1] < mouth[0][1] + 2
        inside = [
            (box[:2] <= point).all() and (point <= box[2:]).all() for point in (left, right, nose, *mouth)
        ]
        assert all(inside)
        cheek = picture[:, int(nose[1]), int(nose[0])].mean()
        pupil = min(
            picture[:, int(y) + dy, int(x) + dx].mean()
            for x, y in (left, right)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        )
        assert pupil < 0.6 * cheek  # eyes are darker than the nose of a pale face


def test_wrong_number_of_people_is_refused():
    with pytest.raises(DiffLoRAError, match="per scene"):
        render(torch.zeros(2, NUM_TRAITS), scene_for(3))


def test_fast_enough():
    traits, scene = sample_people("train", 0, 64), sample_scenes(64, seed=0)
    render(traits, scene)
    started = time.process_time()
    render(traits, scene)
    assert 64 / (time.process_time() - started) > 30  # one thread on a busy machine; some 300 on an idle core
