"""Training the DiT in a toy world of linear people: latent loss, image loss, exact resuming."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora.autoencoder import LaeConfig
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import init_shared_down
from difflora.linear_prior import LinearPrior
from difflora.mixing import MifConfig
from difflora.normalisation import LoraNormalisation
from difflora.transformer import DitConfig
from training import train_dit
from training.common import read_metrics
from training.dit_losses import Data
from training.presets import DitTrainingConfig
from training.train_lae import split_library

spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).with_name("toy_world.py"))
toy_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_world)

SIZES = HypernetworkConfig(
    LaeConfig(latent_tokens=2, latent_channels=8, token_size=8, token_width=8, width=16, stages=1),
    MifConfig(image_width=6, width=16, heads=2),
    DitConfig(latent_tokens=2, latent_channels=8, condition_width=16, width=32, depth=1, heads=2),
)
CONFIG = DitTrainingConfig(
    num_steps=150,
    batch_size=16,
    learning_rate=3e-3,
    decoder_learning_rate=3e-3,
    warmup=10,
    ema_decay=0.95,
    max_photos=2,
    image_loss_weight=5.0,
    image_loss_from=0,
    image_people=16,
    pictures_per_person=4,
    validate_every=1000,
)


def data() -> Data:
    pool, validation = toy_world.pool(200, seed=0), toy_world.pool(16, seed=1)
    shared_down = init_shared_down(toy_world.LAYOUT)
    library = toy_world.best_loras(pool.select(torch.arange(20)), shared_down)  # only 20 of 200 have a LoRA
    training, held_out = split_library(20, 0.1)
    base = toy_world.ToyBase()
    return Data(library, torch.arange(20), training, held_out, pool, validation, base, shared_down)


def networks(given: Data) -> LoraHypernetwork:
    torch.manual_seed(0)
    made = LoraHypernetwork(toy_world.LAYOUT, SIZES)
    made.set_normalisation(LoraNormalisation.fit(given.flat, toy_world.LAYOUT))
    return made


def test_image_loss_teaches_what_the_library_does_not(tmp_path: Path) -> None:
    given = data()
    train_dit.train(networks(given), given, CONFIG, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert rows[-1]["image_gain_zero"] > 0.2  # validation people, one photo; the base model alone is 0
    assert rows[-1]["image_gain"] > 0.2


def test_weight_space_recipe_leaves_the_autoencoder_alone(tmp_path: Path) -> None:
    given = data()
    before = networks(given)
    trained = train_dit.train(
        networks(given), given, replace(CONFIG, num_steps=120, image_loss_weight=0.0), tmp_path
    )
    for name, tensor in before.lae.state_dict().items():
        assert torch.equal(trained.lae.state_dict()[name], tensor), name
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert "image_loss" not in rows[-1]
    latent = [row["latent_loss"] for row in rows]
    assert sum(latent[-10:]) < 0.8 * sum(latent[:10])


@pytest.mark.parametrize("image_loss_weight", [0.0, 5.0])
def test_only_the_image_loss_moves_the_linear_guess(tmp_path: Path, image_loss_weight: float) -> None:
    given = data()
    config = replace(CONFIG, num_steps=3, image_loss_weight=image_loss_weight)
    torch.manual_seed(0)
    made = LoraHypernetwork(toy_world.LAYOUT, replace(SIZES, linear_prior=True))
    made.set_normalisation(LoraNormalisation.fit(given.flat, toy_world.LAYOUT))
    trained = train_dit.train(made, given, config, tmp_path)
    fitted = LinearPrior(SIZES.mif.face_width + SIZES.mif.image_width, (2, 8))
    train_dit.fit_prior(fitted, trained.fit_latents(given.flat), given)
    assert bool(fitted.linear.weight.any())
    assert torch.equal(trained.prior.linear.weight, fitted.linear.weight) == (image_loss_weight == 0)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = data()
    config = replace(CONFIG, num_steps=6, image_loss_from=2, precision="float32")
    whole = train_dit.train(networks(given), given, config, tmp_path / "whole")
    monkeypatch.setattr(train_dit, "SAVE_EVERY", 3)
    rate_at = train_dit.rate_at

    def killed(step: int, *rest: float) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return rate_at(step, *rest)

    monkeypatch.setattr(train_dit, "rate_at", killed)
    with pytest.raises(KeyboardInterrupt):
        train_dit.train(networks(given), given, config, tmp_path / "killed")
    monkeypatch.setattr(train_dit, "rate_at", rate_at)
    resumed = train_dit.train(networks(given), given, config, tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)
    assert [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_held_out_people_are_never_trained_on() -> None:
    given = data()
    used = set(given.image_people().tolist())
    assert used == set(range(200)) - set(range(18, 20))
    assert given.pool_to_library()[:21].tolist() == [*range(20), -1]
