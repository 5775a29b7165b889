"""Diffusion: proved against closed forms and diffusers' DDIMScheduler."""

import math

import pytest
import torch

from difflora import diffusion
from difflora.diffusion import DiffusionConfig
from difflora.errors import DiffLoRAError


@pytest.mark.parametrize("schedule", diffusion.SCHEDULES)
def test_schedule_preserves_variance_and_falls(schedule: str) -> None:
    alpha, sigma = DiffusionConfig(schedule=schedule).alpha_sigma(torch.linspace(0, 1, 50))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(50))
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()
    assert alpha[0] > 0.999 and alpha[-1] < 0.01


def test_cosine_is_the_closed_form() -> None:
    time = torch.linspace(0.05, 0.95, 9)
    alpha, sigma = DiffusionConfig().alpha_sigma(time)
    torch.testing.assert_close(alpha, torch.cos(time * math.pi / 2))
    torch.testing.assert_close(sigma, torch.sin(time * math.pi / 2))


@pytest.mark.parametrize("schedule", diffusion.SCHEDULES)
def test_v_and_x0_are_inverse(schedule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 20, 4, 3, generator=generator)
    alpha, sigma = DiffusionConfig(schedule=schedule).alpha_sigma(torch.linspace(0.1, 1, 20))
    x_t = diffusion.q_sample(x0, noise, alpha, sigma)
    v = alpha[:, None, None] * noise - sigma[:, None, None] * x0  # the definition, 2202.00512 section 4
    torch.testing.assert_close(diffusion.from_x0(x0, x_t, alpha, sigma, "v"), v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(diffusion.to_x0(v, x_t, alpha, sigma, "v"), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(diffusion.to_x0(x0, x_t, alpha, sigma, "x0"), x0)


def test_uncapped_weight_is_the_plain_v_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise, guess = torch.randn(3, 8, 5, generator=generator)
    alpha, sigma = DiffusionConfig().alpha_sigma(torch.linspace(0.1, 0.9, 8))
    x_t = diffusion.q_sample(x0, noise, alpha, sigma)
    v = diffusion.from_x0(x0, x_t, alpha, sigma, "v")
    v_guess = diffusion.from_x0(guess, x_t, alpha, sigma, "v")
    loss = diffusion.diffusion_loss(guess, x0, alpha, sigma, snr_cap=1e9)
    torch.testing.assert_close(loss, (v - v_guess).square().mean(dim=1), rtol=1e-4, atol=1e-5)
    assert (diffusion.loss_weight(alpha, sigma, 5.0) <= 5).all()


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_sampler_equals_diffusers_ddim(num_steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    reference.set_timesteps(num_steps)

    def schedule(time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Diffusers' own table: time 1 is its step 999, time 0 its `final_alpha_cumprod`, step 0."""
        table = reference.alphas_cumprod[(time * 1000 - 1).round().long().clamp(min=0)]
        return table.sqrt(), (1 - table).sqrt()

    def predict_x0(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 0.7) + time[:, None]  # any fixed function

    noise = diffusion.draw_noise((6, 4), torch.Generator().manual_seed(3))
    ours = diffusion.sample(predict_x0, noise, schedule, num_steps)

    x = noise
    for step in reference.timesteps:
        output = reference.step(predict_x0(x, torch.full((6,), (step + 1) / 1000)), step, x)
        x = output.prev_sample
    torch.testing.assert_close(ours, output.pred_original_sample, rtol=1e-4, atol=1e-4)


def test_exact_denoiser_samples_a_gaussian() -> None:
    """x_0 ~ N(m, C) in 2-D: E[x_0 | x_t] is known, so the sampler must return that Gaussian."""
    mean, covariance = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    config = DiffusionConfig()

    def posterior_mean(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (value[0] for value in config.alpha_sigma(time))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        return mean + (x - alpha * mean) @ gain.T

    noise = diffusion.draw_noise((20000, 2), torch.Generator().manual_seed(0))
    drawn = diffusion.sample(posterior_mean, noise, config.alpha_sigma, 100)
    torch.testing.assert_close(drawn.mean(dim=0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.04, rtol=0)

    still = diffusion.sample(posterior_mean, noise[:1], config.alpha_sigma, 8, noise_scale=0.0)
    torch.testing.assert_close(still[0], mean, atol=0.02, rtol=0)  # zero-noise start: the mean prediction


def test_sampler_reports_progress_and_is_deterministic() -> None:
    steps: list[tuple[int, int]] = []

    def draw() -> torch.Tensor:
        noise = diffusion.draw_noise((2, 3), torch.Generator().manual_seed(1))
        schedule = DiffusionConfig().alpha_sigma
        return diffusion.sample(
            lambda x, time: x * 0.5, noise, schedule, 3, progress=lambda *done: steps.append(done)
        )

    assert torch.equal(draw(), draw())
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DiffLoRAError, match="unknown schedule"):
        DiffusionConfig(schedule="sine")
    with pytest.raises(DiffLoRAError, match="unknown prediction"):
        DiffusionConfig(prediction="epsilon")
    with pytest.raises(DiffLoRAError, match="at least 1 step"):
        diffusion.sample(lambda x, time: x, torch.zeros(1, 2), DiffusionConfig().alpha_sigma, 0)
