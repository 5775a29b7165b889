"""The base model's training: it leaves a pipeline, goes on after a stop, starts from trained ones."""

from dataclasses import replace

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from training import world_base
from training.common import read_metrics
from training.world_base import train_base_model
from training.world_pipeline import BaseModelConfig

SIZES = BaseModelConfig(
    picture_px=64,
    latent_channels=8,
    channels=(32, 64),
    text_width=16,
    text_layers=1,
    batch_size=8,
    pictures=160,
    text_pictures=80,
    ring=32,
    ema_pictures=40,
)
PROMPTS = ["a photo of a person, smiling, red background", "a photo of a person, wearing a hat"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    measures = train_base_model(folder, SIZES)
    assert measures["psnr_db"] > 15 and 0.5 < measures["latent_sd"] < 2
    return folder / "base_model"


def test_training_goes_on_where_it_was_stopped(trained, tmp_path, monkeypatch):
    rate_at, asked, stop = world_base.rate_at, [], 88

    def watched(done, config):
        if done == stop:
            raise KeyboardInterrupt
        asked.append(done)
        return rate_at(done, config)

    monkeypatch.setattr(world_base, "rate_at", watched)
    with pytest.raises(KeyboardInterrupt):
        train_base_model(tmp_path, SIZES, save_every=0.0)
    stop = None
    train_base_model(tmp_path, SIZES)
    assert asked[::2] == list(range(0, 160, 8))  # two groups of weights a step, no step twice
    assert BaseModel.load(tmp_path / "base_model").fingerprint != BaseModel.load(trained).fingerprint
    assert list(read_metrics(tmp_path / "metrics-0.jsonl")) == []  # none before a hundred steps
    with pytest.raises(CheckpointError, match="another --out"):
        train_base_model(tmp_path, replace(SIZES, channels=(32, 32)))


def test_a_trained_model_is_where_it_starts(trained, tmp_path):
    still = replace(SIZES, learning_rate=0.0, pictures=16)
    train_base_model(tmp_path, still, init=trained)
    before, after = BaseModel.load(trained), BaseModel.load(tmp_path / "base_model")
    torch.testing.assert_close(
        before.encode_prompts(PROMPTS), after.encode_prompts(PROMPTS), atol=2e-3, rtol=0
    )
    latents = torch.randn(2, *before.latent_shape, generator=torch.Generator().manual_seed(0))
    noise_level, embeds = torch.tensor([500, 100]), before.encode_prompts(PROMPTS)
    with torch.no_grad():
        guesses = [base.predict(latents, noise_level, embeds) for base in (before, after)]
    torch.testing.assert_close(*guesses, atol=1e-2, rtol=0)
    for name, weights in before.autoencoder.state_dict().items():
        assert torch.equal(weights, after.autoencoder.state_dict()[name]), (
            name
        )  # latents mean what they meant
