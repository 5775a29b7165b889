"""Training together equals training alone; it lowers the loss, and can be stopped at any time."""

import dataclasses

import pytest
import torch

from difflora.batched import batched_lora
from difflora.errors import LayoutError
from difflora.layout import DOWN_ROW_NORM, LoraLayout, init_shared_down
from difflora.lora_training import LoraTrainingConfig, common_batches, learn_shared_down, train_loras

IDENTITIES, PICTURES = 3, 5
CONFIG = LoraTrainingConfig(num_steps=6, pictures_per_step=3, learning_rate=2e-2, weight_decay=1e-2)


@pytest.fixture
def setting(tiny_base, random_inputs):
    latents, _, prompts = random_inputs(IDENTITIES * PICTURES)
    layout = LoraLayout.from_model(tiny_base.denoiser, rank=2)
    return tiny_base, layout, latents.unflatten(0, (IDENTITIES, -1)), prompts[:PICTURES]


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("train_down", [False, True])
def test_together_equals_alone(setting, train_down):
    base, layout, latents, prompts = setting
    layout = dataclasses.replace(layout, train_down=train_down)
    down = init_shared_down(layout)
    together = train_loras(base, layout, latents, prompts, CONFIG, seeded(), down)
    alone = torch.cat(
        [
            train_loras(base, layout, latents[b : b + 1], prompts, CONFIG, seeded(), down)
            for b in range(IDENTITIES)
        ]
    )
    assert together.shape == (IDENTITIES, layout.num_parameters)
    # Adam divides by the size of the gradient: rounding errors of tiny gradients grow, so compare as vectors
    distance = (together - alone).norm(dim=1) / alone.norm(dim=1)
    assert distance.max() < 1e-3
    apart = (together[0] - together[1]).norm() / together[0].norm()
    assert apart > 0.05 if not train_down else apart > 1e-3  # people differ far more than rounding


def test_gradient_checkpointing_changes_nothing(setting):
    base, layout, latents, prompts = setting
    down = init_shared_down(layout)
    plain = train_loras(base, layout, latents, prompts, CONFIG, seeded(), down)
    base.denoiser.enable_gradient_checkpointing()
    assert base.denoiser.is_gradient_checkpointing
    again = train_loras(base, layout, latents, prompts, CONFIG, seeded(), down)
    assert (again - plain).norm() / plain.norm() < 1e-3
    assert plain.norm() > 0


def test_loss_falls_and_base_model_stays_as_it_was(setting):
    base, layout, latents, prompts = setting
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    down = init_shared_down(layout)
    config = dataclasses.replace(CONFIG, num_steps=25, learning_rate=5e-2)
    flat = train_loras(base, layout, latents, prompts, config, seeded(), down)
    x0, embeds, noise, times, _ = next(common_batches(base, latents, prompts, config, seeded()))
    losses = []
    with torch.no_grad():
        for weights in (torch.zeros_like(flat), flat):
            with batched_lora(base.denoiser, layout, weights, down):
                losses.append(base.denoising_loss(x0, embeds, noise, times).mean())
    assert losses[1] < 0.95 * losses[0]
    assert all(torch.equal(before[key], value) for key, value in base.denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


def test_start_progress_and_interruption(setting):
    base, layout, latents, prompts = setting
    down = init_shared_down(layout)
    seen = []
    first = train_loras(
        base, layout, latents, prompts, CONFIG, seeded(), down, progress=lambda *report: seen.append(report)
    )
    assert [report[:2] for report in seen] == [(step + 1, 6) for step in range(6)]
    still = dataclasses.replace(CONFIG, learning_rate=1e-12, weight_decay=0.0)
    again = train_loras(base, layout, latents, prompts, still, seeded(), down, initial=first)
    torch.testing.assert_close(again, first)

    def stop(*report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_loras(base, layout, latents, prompts, CONFIG, seeded(), down, progress=stop)
    assert not any(module._forward_hooks for module in base.denoiser.modules())


def test_average_is_the_mean_of_the_last_steps(setting):
    base, layout, latents, prompts = setting
    down = init_shared_down(layout)
    # weights after steps 4, 5 and 6: with a constant rate, the same run cut short
    flat_rate = dataclasses.replace(CONFIG, warmup=0.0, average_from=1.0)
    constant = type("Constant", (LoraTrainingConfig,), {"rate_at": lambda self, step: 1e-2})
    snapshots = [
        train_loras(
            base,
            layout,
            latents,
            prompts,
            constant(**{**dataclasses.asdict(flat_rate), "num_steps": steps}),
            seeded(),
            down,
        )
        for steps in (4, 5, 6)
    ]
    # with a horizon longer than the run the average is the exact mean
    config = constant(**{**dataclasses.asdict(flat_rate), "average_from": 0.5, "average_decay": 0.999})
    mean = train_loras(base, layout, latents, prompts, config, seeded(), down)
    torch.testing.assert_close(mean, torch.stack(snapshots).mean(dim=0), atol=1e-5, rtol=1e-3)


def test_inside_inference_mode_and_bfloat16(setting):
    base, layout, latents, prompts = setting
    down = init_shared_down(layout)
    exact = train_loras(base, layout, latents, prompts, CONFIG, seeded(), down)
    with torch.inference_mode():
        assert torch.equal(train_loras(base, layout, latents, prompts, CONFIG, seeded(), down), exact)
    rough = dataclasses.replace(CONFIG, precision="bfloat16")
    flat = train_loras(base, layout, latents, prompts, rough, seeded(), down)
    assert torch.nn.functional.cosine_similarity(flat, exact).min() > 0.8


def test_batches_are_common_to_all_identities_and_use_every_picture(setting):
    base, _, latents, prompts = setting
    batches = common_batches(base, latents, prompts, CONFIG, seeded())
    seen = torch.cat([next(batches)[0][:3] for _ in range(5)])  # 5 x 3 pictures of the first identity
    counts = [(seen == picture).flatten(1).all(dim=1).sum() for picture in latents[0]]
    assert counts == [3] * PICTURES  # 15 draws of 5 pictures
    x0, embeds, noise, times, chosen = next(batches)
    assert torch.equal(x0[:3], latents[0, chosen])
    assert x0.shape == (IDENTITIES * 3, 4, 4, 4)
    for common in (embeds, noise, times):
        first, *others = common.unflatten(0, (IDENTITIES, 3))
        assert all(torch.equal(first, other) for other in others)
    assert (times[:3] * 3 // 1000).tolist() == [0, 1, 2]  # one time per stratum


def test_learned_down_is_orthogonal_and_differs_from_its_start(setting):
    base, layout, latents, prompts = setting
    start = init_shared_down(layout, seed=4)
    down = learn_shared_down(base, layout, latents, prompts, CONFIG, seeded(), seed=4)
    assert down.keys() == start.keys()
    for matrix in down.values():
        torch.testing.assert_close(matrix @ matrix.T, DOWN_ROW_NORM**2 * torch.eye(2), atol=1e-6, rtol=0)
    assert sum(not torch.allclose(down[name], start[name], atol=1e-4) for name in down) > len(down) / 2
    with pytest.raises(LayoutError, match="no shared one"):
        learn_shared_down(
            base, dataclasses.replace(layout, train_down=True), latents, prompts, CONFIG, seeded()
        )


def test_pictures_and_prompts_must_belong_together(setting):
    base, layout, latents, prompts = setting
    down = init_shared_down(layout)
    for bad_latents, bad_prompts in [
        (latents, prompts[:-1]),
        (latents[0], prompts),
        (latents[:, :0], prompts[:0]),
    ]:
        with pytest.raises(LayoutError):
            train_loras(base, layout, bad_latents, bad_prompts, CONFIG, seeded(), down)


def test_rates_and_config_errors():
    config = LoraTrainingConfig(num_steps=100, learning_rate=1.0, warmup=0.1)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[54] == pytest.approx(0.5)  # half-way down the cosine
    assert rates[-1] == pytest.approx(0.0)
    for wrong in ({"num_steps": 0}, {"precision": "int8"}, {"average_decay": 1.0}, {"warmup": 2}):
        with pytest.raises(ValueError, match=r"must|not one of"):
            LoraTrainingConfig(**wrong)
