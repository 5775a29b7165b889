"""Reference photos: which one counts, and that a LoRA can be trained on exactly that one."""

import pytest
import torch

from difflora.errors import NoFaceError
from difflora.synthetic.renderer import PHOTO_PX
from training.evaluation_people import ReferencePhotos, photo_scenes, photos_of, reference_number

COUNT = 6


class Analyzer:
    """Finds a face only in photos that it knows."""

    def __init__(self, known):
        self.known = known

    def analyze(self, photos, on_missing="error"):
        for photo in photos:
            if not any(abs(float(photo.mean()) - mean) < 1e-3 for mean in self.known):
                raise NoFaceError("no face")


def means(split, index):
    pixels = ((photos_of(split, index, COUNT) + 1) * 127.5).round().clamp(0, 255)
    return [float(photo.to(torch.uint8).float().mean()) for photo in pixels]


def test_photos_of_a_person_repeat_and_differ_between_people():
    first = photos_of("test", 3, 2)
    assert torch.equal(first, photos_of("test", 3, 2))
    assert first.shape == (2, 3, PHOTO_PX, PHOTO_PX) and -1 <= first.min() and first.max() <= 1
    assert not torch.allclose(first, photos_of("test", 4, 2))
    assert photos_of("test", 3, 2, 64).shape == (2, 3, 64, 64)


def test_the_reference_is_the_first_photo_with_a_face():
    assert reference_number(Analyzer(means("test", 1)), "test", 1) == 0
    assert reference_number(Analyzer(means("test", 1)[2:]), "test", 1) == 2
    with pytest.raises(NoFaceError, match="test person 1"):
        reference_number(Analyzer([]), "test", 1)


def test_a_lora_is_trained_on_exactly_that_photo_and_its_prompt():
    known = [means("test", 0)[0], means("test", 1)[2]]
    pictures, prompts = ReferencePhotos("test", Analyzer(known)).pictures([0, 1], 64)
    assert pictures.shape == (2, 1, 3, 64, 64)
    shrunk = photos_of("test", 1, COUNT)[2].unflatten(2, (64, 2)).unflatten(1, (64, 2)).mean(dim=(2, 4))
    assert torch.allclose(pictures[1, 0], shrunk, atol=1e-6)  # 128 px: each pixel the mean of four
    assert prompts == [[photo_scenes("test", i, COUNT).prompts()[n]] for i, n in ((0, 0), (1, 2))]
