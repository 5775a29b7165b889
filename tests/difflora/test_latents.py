"""Blending: closed forms, exact ends, order does not matter."""

import math

import pytest
import torch

from difflora.errors import DiffLoRAError
from difflora.features import IdentityFeatures
from difflora.latents import BLEND_MODES, LoraLatent, blend_latents


def somebody(latent: torch.Tensor, autoencoder: str = "lae") -> LoraLatent:
    return LoraLatent(latent, autoencoder, IdentityFeatures(torch.ones(2, 512), torch.ones(2, 6)))


@pytest.fixture
def three() -> list[LoraLatent]:
    generator = torch.Generator().manual_seed(0)
    return [somebody(size * torch.randn(3, 4, generator=generator)) for size in (1.0, 2.0, 0.5)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_two_people_on_the_sphere_are_slerp(share: float) -> None:
    angle = 1.1  # radians between two unit latents in a plane
    first = torch.tensor([[1.0, 0.0]])
    second = torch.tensor([[math.cos(angle), math.sin(angle)]])
    mixed = blend_latents([somebody(first), somebody(3 * second)], [1 - share, share])
    size = (1 - share) + 3 * share
    expected = size * torch.tensor([[math.cos(share * angle), math.sin(share * angle)]])
    torch.testing.assert_close(mixed.latent, expected)


def test_linear_is_the_weighted_mean(three: list[LoraLatent]) -> None:
    mixed = blend_latents(three, [1.0, 2.0, 5.0], "linear")
    expected = (three[0].latent + 2 * three[1].latent + 5 * three[2].latent) / 8
    torch.testing.assert_close(mixed.latent, expected)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_all_weight_on_one_is_exactly_that_one(three: list[LoraLatent], mode) -> None:
    for index in range(3):
        assert blend_latents(three, [3.0 * (i == index) for i in range(3)], mode) is three[index]


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_order_does_not_matter(three: list[LoraLatent], mode) -> None:
    mixed = blend_latents(three, [1.0, 2.0, 3.0], mode).latent
    torch.testing.assert_close(blend_latents(three[::-1], [3.0, 2.0, 1.0], mode).latent, mixed)


def test_spherical_keeps_the_size(three: list[LoraLatent]) -> None:
    sizes = [latent.latent.norm() for latent in three]
    mixed = blend_latents(three, [1.0, 1.0, 1.0])
    torch.testing.assert_close(mixed.latent.norm(), sum(sizes) / 3)
    assert blend_latents(three, [1.0, 1.0, 1.0], "linear").latent.norm() < mixed.latent.norm()
    assert mixed.settings["difflora.num_photos"] == "6" and len(mixed.features) == 6


def test_bad_requests_say_what_to_do(three: list[LoraLatent]) -> None:
    for latents, weights in ((three[:1], [1.0]), (three, [1.0, 2.0])):
        with pytest.raises(DiffLoRAError, match="at least two people"):
            blend_latents(latents, weights)
    for weights in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0]):
        with pytest.raises(DiffLoRAError, match="at least one of them above 0"):
            blend_latents(three, weights)
    with pytest.raises(DiffLoRAError, match="unknown blend"):
        blend_latents(three, [1.0, 1.0, 1.0], "cubic")
    with pytest.raises(DiffLoRAError, match="different DiffLoRA checkpoints"):
        blend_latents([three[0], somebody(three[1].latent, "other")], [0.5, 0.5])
    with pytest.raises(DiffLoRAError, match="exact opposites"):
        blend_latents([somebody(three[0].latent), somebody(-three[0].latent)], [0.5, 0.5])
