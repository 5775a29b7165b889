"""The picture decoder: trained beside an encoder that stays as it is, interrupted and continued."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("diffusers")

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.picture_autoencoder import PatchAutoencoder
from difflora.synthetic import world
from training.world_decoder import decoder_loss, measure, train_picture_decoder
from training.world_pipeline import (
    BaseModelConfig,
    build_autoencoder,
    build_denoiser,
    build_text_encoder,
    build_tokenizer,
    save_pipeline,
)

SIZES = BaseModelConfig(
    picture_px=32,
    latent_channels=8,
    channels=(32,),
    text_width=16,
    text_layers=1,
    decoder_widths=(16, 12, 8),
    decoder_blocks=(1, 1, 1),
    decoder_pictures=4800,
)


@pytest.fixture
def base_model(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    networks = build_denoiser(SIZES), build_text_encoder(SIZES, tokenizer)
    save_pipeline(tmp_path / "base_model", *networks, tokenizer, build_autoencoder(SIZES))
    return tmp_path / "base_model"


def test_training_improves_pictures_and_leaves_latents_alone(base_model, tmp_path):
    before = PatchAutoencoder.from_pretrained(base_model / "vae")
    measures = train_picture_decoder(tmp_path / "run", base_model, SIZES)
    after = PatchAutoencoder.from_pretrained(base_model / "vae")
    assert measures["psnr_db"] > measures["linear_psnr_db"] + 0.05
    assert measure(after, SIZES, "cpu")["psnr_db"] == pytest.approx(measures["psnr_db"], abs=0.02)  # float16
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(before.encode(pictures).latent_dist.mode(), after.encode(pictures).latent_dist.mode())


def test_a_run_goes_on_where_it_stopped(base_model, tmp_path):
    short = dataclasses.replace(SIZES, decoder_pictures=160)
    train_picture_decoder(tmp_path / "run", base_model, short)
    train_picture_decoder(tmp_path / "run", base_model, dataclasses.replace(SIZES, decoder_pictures=1600))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1600]
    with pytest.raises(CheckpointError, match="another decoder"):
        wide = dataclasses.replace(SIZES, decoder_widths=(20, 12, 8))
        train_picture_decoder(tmp_path / "run", base_model, wide)


def test_a_trained_decoder_is_trained_on(base_model, tmp_path):
    first = train_picture_decoder(tmp_path / "first", base_model, SIZES)
    little = dataclasses.replace(SIZES, decoder_pictures=32)
    more = train_picture_decoder(tmp_path / "second", base_model, little)
    assert (
        more["psnr_db"] > (first["psnr_db"] + first["linear_psnr_db"]) / 2
    )  # two steps from nothing: linear


def test_loss_counts_edges():
    pictures = torch.zeros(1, 3, 8, 8)
    flat = decoder_loss(pictures + 0.1, pictures)
    pattern = 0.1 * (torch.arange(8) % 2 * 2 - 1).float().expand(1, 3, 8, 8)
    assert flat == pytest.approx(0.1)
    assert decoder_loss(pattern, pictures) == pytest.approx(0.1 + 0.5 * 0.2)


def test_the_shipped_decoder_draws_what_the_linear_one_blurs():
    base = BaseModel.load(world.BASE_MODEL)
    measures = measure(base.autoencoder, BaseModelConfig(), "cpu")
    assert measures["psnr_db"] > measures["linear_psnr_db"] + 4
