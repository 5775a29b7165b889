"""Codes are fitted to what a LoRA does, not to its numbers."""

import torch

from difflora.batched import batched_lora
from difflora.layout import LoraLayout, init_shared_down
from training.evaluation_pictures import LoraBatch
from training.latent_fitting import PICTURES, draw_latents, fit_codes


def test_a_code_is_found_that_does_what_the_lora_does(drawing_base, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    basis = torch.randn(3, layout.num_parameters, generator=generator)
    codes = torch.randn(4, 3, generator=generator)
    loras = LoraBatch(layout, init_shared_down(layout), codes @ basis, 1.0)
    drawn, embeds = draw_latents(drawing_base, loras)
    assert drawn.shape == (4, PICTURES, 8, 4, 4) and len(embeds) == PICTURES
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3  # everybody's own

    times = torch.full((4 * PICTURES,), 500)
    noise = torch.randn(drawn.flatten(0, 1).shape, generator=generator)
    noisy = drawing_base.add_noise(drawn.flatten(0, 1), noise, times)

    def predicted(flat):
        with torch.no_grad(), batched_lora(drawing_base.denoiser, layout, flat, loras.shared_down):
            return drawing_base.denoise(noisy, times, embeds.repeat(4, 1, 1))

    def error(codes):
        return (predicted(codes @ basis) - predicted(loras.flat)).square().mean()

    start = codes + 0.3 * torch.randn(4, 3, generator=generator)
    fitted = fit_codes(drawing_base, loras, lambda given: given @ basis, start)
    assert error(fitted) < 0.5 * error(start)
    assert (fitted - codes).norm() < (start - codes).norm()


def test_everybody_is_fitted_as_if_alone(drawing_base, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    basis = torch.randn(3, layout.num_parameters, generator=generator)
    codes = torch.randn(2, 3, generator=generator)
    down = init_shared_down(layout)
    loras = LoraBatch(layout, down, codes @ basis, 1.0)
    start = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    together = fit_codes(drawing_base, loras, lambda given: given @ basis, start, num_steps=3)
    swapped = LoraBatch(layout, down, loras.flat.flip(0), 1.0)
    again = fit_codes(drawing_base, swapped, lambda given: given @ basis, start.flip(0), num_steps=3)
    assert torch.allclose(together, again.flip(0), atol=1e-4)


def test_steps_are_as_long_as_people_differ(drawing_base, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    basis = torch.randn(3, layout.num_parameters, generator=generator)
    loras = LoraBatch(layout, init_shared_down(layout), torch.randn(2, 3, generator=generator) @ basis, 1.0)
    start, spread = torch.zeros(2, 3), torch.tensor([1.0, 0.1, 0.0])
    fitted = fit_codes(drawing_base, loras, lambda given: given @ basis, start, num_steps=1, spread=spread)
    torch.testing.assert_close(fitted.abs(), 0.2 * spread.expand(2, 3))  # one step of Adam
