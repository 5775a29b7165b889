"""Best of n: the candidate that is kept is the one whose pictures look most like the photos."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from difflora import candidates
from difflora.candidates import NUM_PICTURES, batched_draw, embed_pictures, rank_candidates
from difflora.errors import DiffLoRAError, FaceModelError, NoFaceError
from difflora.faces import FaceReport
from difflora.features import IdentityFeatures


class Analyzer:
    """Reads a "face" off the mean colour of a picture; a black one has none."""

    def analyze(self, photos, on_missing):
        assert on_missing == "skip"
        colours = [torch.from_numpy(np.asarray(photo).mean((0, 1)) / 255.0) for photo in photos]
        used = [bool(colour.sum() > 0) for colour in colours]
        if not any(used):
            raise NoFaceError("no face")
        rows = [torch.nn.functional.pad(c.float(), (0, 509)) for c, u in zip(colours, used, strict=True) if u]
        unit = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        return unit, tuple(FaceReport(i, u, "", int(u)) for i, u in enumerate(used))


class Base:
    """A base model that draws the colour which the LoRA in force says."""

    latent_shape, device, denoiser = (3, 2, 2), torch.device("cpu"), SimpleNamespace(colours=None)

    def encode_prompts(self, prompts):
        return torch.zeros(1, 1, 1)

    def sample(self, prompts, noise, num_steps):
        assert len(prompts) == len(noise)
        return self.denoiser.colours.repeat_interleave(NUM_PICTURES, 0)

    def decode(self, latents):
        return (latents * 2 - 1)[:, :, None, None].expand(-1, -1, 8, 8)


class Model:
    """The LoRA of seed s is the colour number s."""

    face_analyzer, layout, shared_down = Analyzer(), None, None
    recommended = SimpleNamespace(strength=1.0)
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 0]])

    def generate_weights(self, people, seed, num_steps, guidance_scale, noise_scale):
        return self.colours[seed % 4].expand(len(people), -1)


@pytest.fixture(autouse=True)
def colour_lora(monkeypatch):
    @contextmanager
    def lora(denoiser, layout, flat, shared_down, strength):
        denoiser.colours = flat
        yield

    monkeypatch.setattr(candidates, "batched_lora", lora)


def person(*colour: float) -> IdentityFeatures:
    return IdentityFeatures(torch.nn.functional.pad(torch.tensor([colour]), (0, 509)), torch.zeros(1, 4))


def draw_colours(flat: torch.Tensor, progress) -> torch.Tensor:
    """Two pictures of each candidate in its colour, as a host would draw them."""
    for index in range(len(flat)):
        progress(index + 1, len(flat))
    return (flat * 2 - 1)[:, None, :, None, None].expand(-1, 2, -1, 8, 8)


def test_the_best_candidate_is_the_one_that_looks_like_the_photos() -> None:
    done: list[tuple[int, int]] = []
    people = [person(0.0, 1.0, 0.0), person(0.0, 0.6, 0.8)]
    draw = batched_draw(Model(), Base())
    ranking = rank_candidates(Model(), draw, people, 4, seed=0, progress=lambda *n: done.append(n))
    assert ranking.seeds == (0, 1, 2, 3) and ranking.best.tolist() == [1, 2]
    torch.testing.assert_close(
        ranking.similarity, torch.tensor([[0.0, 1, 0, 0], [0.0, 0.6, 0.8, 0]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(ranking.best_weights, Model.colours[[1, 2]])
    assert done == sorted(done) and done[-1] == (20, 20)  # 4 sampled, then 4 drawn and 4 compared of each
    assert [step for step, _ in done[:5]] == [1, 2, 3, 4, 8]
    assert ranking.pictures.shape == (2, 4, NUM_PICTURES, 3, 8, 8) and ranking.pictures.dtype == torch.uint8
    later = rank_candidates(Model(), draw, people, 2, seed=2)
    assert later.seeds == (2, 3) and later.best.tolist() == [0, 0]


def test_anything_can_draw() -> None:
    people = [person(0.0, 1.0, 0.0), person(0.0, 0.6, 0.8)]
    done: list[int] = []
    ranking = rank_candidates(Model(), draw_colours, people, 4, progress=lambda n, _: done.append(n))
    assert done[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ranking.best.tolist() == [1, 2] and ranking.pictures.shape[2] == 2
    assert rank_candidates(Model(), draw_colours, people, 3, seed=2**64 - 1).seeds == (2**64 - 1, 0, 1)


def test_pictures_without_a_face_count_nothing() -> None:
    black = torch.full((2, 3, 8, 8), -1.0)
    assert not embed_pictures(Analyzer(), black).any()
    mixed = torch.cat([black[:1], -black[:1]])
    assert embed_pictures(Analyzer(), mixed).any(dim=1).tolist() == [False, True]


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(DiffLoRAError, match="at least one"):
        rank_candidates(Model(), draw_colours, [person(1.0, 0, 0)], 0)
    with pytest.raises(DiffLoRAError, match="all are the same"):
        rank_candidates(Model(), draw_colours, [person(1.0, 0, 0)], 4, noise_scale=0.0)
    blind = Model()
    blind.face_analyzer = None
    with pytest.raises(FaceModelError, match="face_pack="):
        rank_candidates(blind, draw_colours, [person(1.0, 0, 0)])
