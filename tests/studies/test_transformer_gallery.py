"""The gallery draws once, and both recognisers see the same pictures."""

import pytest
import torch

from studies import transformer_gallery
from studies.transformer_gallery import Gallery, remember, similarity


class Brightness:
    """Embeds a picture as its mean red and green."""

    def __init__(self):
        self.calls = 0

    def embed(self, pictures):
        self.calls += 1
        return pictures.mean(dim=(2, 3))[:, :2]


class Base:
    fingerprint, latent_shape, device = "toy", (2, 1, 1), "cpu"

    def encode_prompts(self, prompts):
        return torch.zeros(len(prompts), 1, 1)


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    def draw_people(base, embeds, noise, steps, loras):
        colour = loras.flat[:, :3] * loras.strength  # (B, 3)
        return colour[:, None, :, None, None].expand(-1, len(embeds), 3, 4, 4)

    monkeypatch.setattr(transformer_gallery, "draw_people", draw_people)
    judges = {"conditioning": Brightness(), "evaluation": Brightness()}
    targets = {
        "conditioning": torch.tensor([[1.0, 0], [0, 1]]),
        "evaluation": torch.tensor([[0, 1.0], [1, 0]]),
    }
    return Gallery(Base(), None, judges, targets, ["a", "b"], 3, 0, tmp_path / "pictures")


class Networks:
    layout = None


def test_everybody_is_compared_with_themselves_by_both(gallery):
    flat = torch.tensor([[0.5, 0.1, 0], [0.2, 0.3, 0]])
    curve = gallery.measure(Networks(), flat, [1.0, 2.0])
    assert curve["1"]["conditioning"] == pytest.approx([0.5, 0.3])
    assert curve["2"]["evaluation"] == pytest.approx([0.2, 0.4])


def test_what_was_measured_is_not_drawn_again_but_other_loras_are(gallery):
    flat = torch.rand(2, 3)
    first = gallery.measure(Networks(), flat, [1.0])
    assert gallery.measure(Networks(), flat, [1.0]) == first
    assert gallery.judges["evaluation"].calls == 1
    gallery.measure(Networks(), flat + 1, [1.0])
    gallery.measure(Networks(), flat, [1.5])
    assert gallery.judges["evaluation"].calls == 3


def test_similarity_is_per_picture():
    pictures = torch.zeros(1, 2, 3, 4, 4)
    pictures[0, 1, 0] = 1
    assert similarity(Brightness(), pictures, torch.tensor([[1.0, 0]])).tolist() == [[0.0, 1.0]]


def test_remember_makes_a_thing_once(tmp_path):
    made = iter([{"a": 1}])
    assert remember(tmp_path / "x.json", lambda: next(made)) == {"a": 1}
    assert remember(tmp_path / "x.json", lambda: next(made)) == {"a": 1}
