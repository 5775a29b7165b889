"""Variants of MIF and DiT: one thing changed, the rest the same."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from difflora.autoencoder import LaeConfig, LoraAutoencoder
from difflora.hypernetwork import HypernetworkConfig
from difflora.layout import init_shared_down
from difflora.mixing import MifConfig
from difflora.normalisation import LoraNormalisation
from difflora.transformer import DitConfig
from studies import transformer_variants
from studies.transformer_variants import VARIANTS, Material, sample_flat, train_variant, training_config
from training.common import read_metrics
from training.lora_library import Library
from training.presets import Preset, preset
from training.train_lae import TrainedLae

TOY = Path(__file__).resolve().parents[1] / "training" / "toy_world.py"
spec = importlib.util.spec_from_file_location("toy_world", TOY)
toy_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_world)

SIZES = HypernetworkConfig(
    LaeConfig(latent_tokens=2, latent_channels=8, token_size=8, token_width=8, width=16, stages=1),
    MifConfig(image_width=6, width=16, heads=2),
    DitConfig(latent_tokens=2, latent_channels=8, condition_width=16, width=32, depth=1, heads=2),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
TRAINED, PREDICTED = 10, 30


@pytest.fixture
def material():
    pool, validation = toy_world.pool(PREDICTED, seed=0), toy_world.pool(8, seed=1)
    down = init_shared_down(toy_world.LAYOUT)
    people = torch.cat([torch.arange(TRAINED), torch.arange(PREDICTED)])
    flat = toy_world.best_loras(pool, down)[people]
    torch.manual_seed(0)
    lae = LoraAutoencoder(toy_world.LAYOUT, SIZES.lae)
    trained_lae = TrainedLae(lae, toy_world.LAYOUT, LoraNormalisation.fit(flat, toy_world.LAYOUT), 0.1)
    library = Library(toy_world.LAYOUT, down, flat, people)
    base = toy_world.ToyBase()
    base.fingerprint = "toy"
    return Material(library, TRAINED, trained_lae, pool, validation, base, SimpleNamespace(width=6))


def test_a_variant_hides_features_in_training_and_after_it(material):
    for name, face, image in (("mixed", 1, 1), ("face_only", 1, 0), ("image_only", 0, 1)):
        seen = BY_NAME[name].features(material.pool)
        assert bool(seen.face.any()) == bool(face) and bool(seen.image.any()) == bool(image)
        assert torch.equal(seen.valid, material.pool.valid)


def test_fewer_people_are_predicted_ones_and_the_held_out_stay_the_same(material):
    whole = material.data(BY_NAME["mixed"])
    few = material.data(replace(BY_NAME["people_64"], people=5))
    assert material.whole == 26 and whole.training == slice(0, 36)  # 40 rows, the last tenth held out
    assert few.training == slice(0, 5) and few.people[:5].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(few.flat[:5], material.loras.flat[TRAINED : TRAINED + 5])
    assert torch.equal(few.flat[few.held_out], whole.flat[whole.held_out])
    assert few.people[few.held_out].tolist() == [26, 27, 28, 29]


def test_the_budget_is_the_same_and_only_one_stage_has_the_image_loss():
    configs = {name: training_config(variant, 600, 60, 0) for name, variant in BY_NAME.items()}
    longer = [configs.pop(name) for name in ("no_prior_longer", "v_longer")]
    assert configs.pop("prior_alone").num_steps == 1
    first = [config for name, config in configs.items() if BY_NAME[name].after is None]
    assert len(first) == len(VARIANTS) - 5 and all(config == first[0] for config in first)
    assert all(config == replace(first[0], num_steps=3000) for config in longer)
    assert first[0].num_steps == 600 and first[0].image_loss_weight == 0
    assert configs["image_loss"].image_loss_weight == preset("synthetic-image").dit.image_loss_weight > 0
    assert replace(configs["image_loss"], image_loss_weight=0.0) == configs["longer"]


def test_a_second_stage_starts_from_the_first_and_v_is_trained_as_v(material, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer_variants, "preset", lambda name: Preset(SIZES, dit=preset(name).dit))
    seen = []
    train = transformer_variants.train_dit.train

    def watch(networks, data, config, folder):
        seen.append((networks.config.diffusion.prediction, networks.mif.gate.weight.clone()))
        return train(networks, data, config, folder)

    monkeypatch.setattr(transformer_variants.train_dit, "train", watch)
    trained = {}
    for name in ("mixed", "v", "image_loss"):
        config = replace(training_config(BY_NAME[name], 4, 2, 0), batch_size=4, max_photos=2)
        trained[name], measured = train_variant(BY_NAME[name], material, config, tmp_path)
        assert set(measured) == {"image_gain_zero", "held_out_r2"}
    assert [prediction for prediction, _ in seen] == ["x0", "v", "x0"]
    assert torch.equal(seen[2][1], trained["mixed"].mif.gate.weight)
    assert "image_loss" in read_metrics(tmp_path / "image_loss" / "metrics.jsonl")[-1]
    assert "image_loss" not in read_metrics(tmp_path / "mixed" / "metrics.jsonl")[-1]

    features = (torch.randn(3, 1, 512), torch.randn(3, 1, 6), torch.ones(3, 1, dtype=torch.bool))
    mean = sample_flat(trained["mixed"], features, noise_seed=0)[1]
    assert torch.equal(mean, sample_flat(trained["mixed"], features, noise_seed=1)[1])  # zero noise
    noisy = [sample_flat(trained["mixed"], features, seed, noise_scale=1.0)[1] for seed in (0, 1)]
    assert not torch.allclose(*noisy)
