"""Drawing many people at once, and the two who measure likeness."""

import pytest
import torch

from difflora.errors import NoFaceError
from difflora.faces import FaceReport
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import Lora
from difflora.patch import apply_lora
from training.evaluation_pictures import (
    PEOPLE_AT_ONCE,
    Comparison,
    ConditioningLikeness,
    LoraBatch,
    draw_people,
)


def test_people_drawn_at_once_equal_people_drawn_alone(drawing_base, generator):
    base = drawing_base
    people, prompts = PEOPLE_AT_ONCE + 2, 2  # the second batch is smaller
    layout = LoraLayout.from_model(base.denoiser, rank=2)
    down = init_shared_down(layout)
    flat = 0.3 * torch.randn(people, layout.num_parameters, generator=generator)
    noise = torch.randn(people, prompts, *base.latent_shape, generator=generator)
    embeds = torch.randn(prompts, 5, 12, generator=generator)
    together = draw_people(base, embeds, noise, 3, LoraBatch(layout, down, flat, 1.5))
    plain = draw_people(base, embeds, noise, 3, None)
    for person in (0, people - 1):
        with apply_lora(base.denoiser, Lora.from_flat(layout, flat[person], down), 1.5):
            alone = draw_people(base, embeds, noise[person : person + 1], 3, None)[0]
        assert torch.allclose(together[person], alone, atol=1e-4)
        assert not torch.allclose(together[person], plain[person], atol=1e-2)


class Analyzer:
    """Finds a face in every picture that is not black, and knows it by its colour."""

    def analyze(self, photos, on_missing):
        assert on_missing == "skip"
        found = [index for index, photo in enumerate(photos) if photo.any()]
        if not found:
            raise NoFaceError("no face")
        colours = torch.stack([torch.from_numpy(photos[i]).float().mean((0, 1)) for i in found])
        embedding = torch.zeros(len(found), 512)
        embedding[:, :3] = torch.nn.functional.normalize(colours, dim=-1)
        reports = tuple(FaceReport(i, i in found, "", int(i in found)) for i in range(len(photos)))
        return embedding, reports


def test_a_picture_without_a_face_is_not_alike():
    likeness = ConditioningLikeness(Analyzer())
    red, black = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, -1, -1])
    pictures = torch.stack([torch.stack([red, black]), torch.stack([black, black])])  # (2, 2, 3)
    pictures = pictures[..., None, None].expand(2, 2, 3, 4, 4)
    is_red, is_green = torch.eye(512)[:2]
    others = torch.stack([is_red, is_green, is_green])  # (M, E): red in one of three photos
    compared = Comparison(likeness, is_red.expand(2, -1), is_green.expand(2, -1), others.expand(2, -1, -1))
    values = compared.similarities(pictures)
    assert values["similarity"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert values["reference_similarity"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert values["r_similarity"][0].tolist() == pytest.approx([1 / 3, 0.0])
    assert likeness.embed(pictures[1]).abs().sum() == 0  # nobody anywhere
