"""The linear prior: exact in a linear Gaussian world, silent about nobody, corrected by the transformer."""

from dataclasses import replace

import pytest
import torch

from difflora.diffusion import DiffusionConfig, q_sample
from difflora.errors import DiffLoRAError
from difflora.hypernetwork import LoraHypernetwork
from difflora.linear_prior import LatentPrior, LinearPrior
from tests.difflora.test_hypernetwork import CONFIG, LAYOUT

FACE, IMAGE, LATENT = 6, 4, (2, 3)
NOISE = torch.tensor([0.1, 0.2, 0.4])  # of the latents around the linear map, per channel


def linear_world(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.randn(FACE + IMAGE, 6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    photos = torch.randn(count, FACE + IMAGE, generator=generator)
    latents = (photos @ truth).unflatten(1, LATENT) + 0.5
    return photos, latents + NOISE * torch.randn(latents.shape, generator=generator)


@pytest.fixture
def prior() -> LinearPrior:
    made = LinearPrior(FACE + IMAGE, LATENT)
    assert made.is_untrained
    made.fit(*linear_world(4000, 1), linear_world(4000, 2), FACE, 1e-6)
    return made.requires_grad_(False)


def split(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return photos[:, None, :FACE], photos[:, None, FACE:]


def test_it_finds_the_linear_map_and_its_error(prior: LinearPrior) -> None:
    assert not prior.is_untrained
    photos, latents = linear_world(2000, 3)
    known = prior(*split(photos), torch.ones(2000, 1, dtype=torch.bool))
    error = (latents - known.mean).square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(error, NOISE, rtol=0.05, atol=0)
    torch.testing.assert_close(known.deviation[0], NOISE.expand(2, 3), rtol=0.05, atol=0)


@pytest.mark.parametrize("time", [0.2, 0.6, 0.95])
def test_the_posterior_is_the_best_guess_and_knows_its_error(prior: LinearPrior, time: float) -> None:
    photos, latents = linear_world(4000, 3)
    known = prior(*split(photos), torch.ones(4000, 1, dtype=torch.bool))
    alpha, sigma = DiffusionConfig().alpha_sigma(torch.full((4000,), time))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    guess = known.posterior(q_sample(latents, noise, alpha, sigma), alpha, sigma)
    error = latents - guess.mean
    torch.testing.assert_close(error.square().mean(dim=0).sqrt(), guess.deviation[0], rtol=0.06, atol=0)
    change = guess.mean - known.mean  # the best guess: no multiple of the change would improve it
    cosine = torch.nn.functional.cosine_similarity(error, change, dim=0)
    assert cosine.abs().max() < 0.06


def test_nobody_is_the_standardised_latent_itself(prior: LinearPrior) -> None:
    photos, _ = linear_world(3, 4)
    nobody = prior(*split(photos), torch.zeros(3, 1, dtype=torch.bool))
    assert not nobody.mean.any() and bool((nobody.deviation == 1).all())


def test_a_photo_of_weight_two_counts_as_listed_twice(prior: LinearPrior) -> None:
    photos, _ = linear_world(2, 4)
    face, image = photos[None, :, :FACE], photos[None, :, FACE:]
    weighted = prior(face, image, torch.tensor([[2.0, 1.0]])).mean
    twice = [torch.cat([part[:, :1], part], dim=1) for part in (face, image)]
    torch.testing.assert_close(weighted, prior(*twice, torch.ones(1, 3, dtype=torch.bool)).mean)


def test_an_untrained_transformer_samples_what_the_prior_says() -> None:
    torch.manual_seed(0)
    networks = LoraHypernetwork(LAYOUT, replace(CONFIG, linear_prior=True))
    assert networks.prior is not None
    torch.nn.init.normal_(networks.prior.linear.weight)
    shape = networks.latent_mean.shape
    networks.prior.deviation.copy_(torch.rand(shape) + 0.1)
    face, image = torch.randn(200, 1, CONFIG.mif.face_width), torch.randn(200, 1, CONFIG.mif.image_width)
    face, image = face[:1].expand_as(face), image[:1].expand_as(image)  # one person, many samples
    condition = networks.condition(face, image, torch.ones(200, 1, dtype=torch.bool))
    assert condition.prior is not None
    mean = condition.prior.mean[0]
    calm = networks.sample(condition, torch.randn(200, *shape), 4, noise_scale=0.0)
    torch.testing.assert_close(calm[0], mean, rtol=5e-3, atol=2e-2)
    drawn = networks.sample(condition, torch.randn(200, *shape), 50)
    torch.testing.assert_close(drawn.std(dim=0), networks.prior.deviation, rtol=0.2, atol=0)
    assert networks.predict_guided(drawn, torch.ones(200), condition, 2.0).shape == drawn.shape


def test_v_prediction_with_a_prior_is_refused() -> None:
    with pytest.raises(DiffLoRAError, match="linear prior needs the prediction x0"):
        replace(CONFIG, linear_prior=True, diffusion=DiffusionConfig(prediction="v"))


def test_the_prior_is_a_plain_pair() -> None:
    known = LatentPrior(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    nothing_seen = known.posterior(torch.randn(1, 2, 3), torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(nothing_seen.mean, known.mean)
    torch.testing.assert_close(nothing_seen.deviation, known.deviation)
