"""Presets: every one is consistent, and every setting can be given on the command line."""

import argparse
import itertools
from pathlib import Path

import pytest

from difflora.errors import DiffLoRAError
from training.base_presets import BASE_PRESETS
from training.lora_library import LibraryConfig
from training.optimising import rate_at
from training.presets import PRESETS, DitTrainingConfig, apply_options, config_options, fit_features, preset


@pytest.mark.parametrize("name", PRESETS)
def test_photos_suffice_for_references_and_pictures(name: str) -> None:
    config = PRESETS[name].dit
    assert config.max_photos + config.pictures_per_person <= config.photos_per_person
    assert config.image_loss_from < config.num_steps


def test_options_override_the_preset() -> None:
    parser = argparse.ArgumentParser()
    config_options(parser, DitTrainingConfig)
    options = parser.parse_args(["--image-loss-weight", "0", "--num-steps", "7"])
    config = apply_options(preset("tiny").dit, options)
    assert (config.image_loss_weight, config.num_steps) == (0.0, 7)
    assert config.pool_people == preset("tiny").dit.pool_people


def test_feature_widths_are_filled_in() -> None:
    mif = fit_features(preset("synthetic").networks, 512, 96).mif
    assert (mif.face_width, mif.image_width) == (512, 96)


@pytest.mark.parametrize("name", BASE_PRESETS)
def test_real_base_models_ask_for_what_users_bring(name: str, tmp_path: Path) -> None:
    given = preset(name)
    assert given.lora_library.targets == "attention" and given.lora_library.rank == 4
    assert given.networks.mif.image_width == 768  # CLIP ViT-L/14
    assert given.file("base", tmp_path) == tmp_path
    for kind, message in (("face_pack", "--face-pack .* antelopev2 or buffalo_l"), ("photos", "--photos")):
        with pytest.raises(DiffLoRAError, match=message):
            given.file(kind, None)


def test_yes_or_no_options_override_the_preset() -> None:
    parser = argparse.ArgumentParser()
    config_options(parser, LibraryConfig)
    library = preset("sdxl").lora_library
    assert library.checkpointing
    assert apply_options(library, parser.parse_args(["--rank", "8"])).rank == 8
    assert apply_options(library, parser.parse_args([])).checkpointing
    assert not apply_options(library, parser.parse_args(["--no-checkpointing"])).checkpointing
    with pytest.raises(DiffLoRAError, match="--targets 'ff' is not known"):
        apply_options(library, parser.parse_args(["--targets", "ff"]))


def test_unknown_preset_is_an_error() -> None:
    with pytest.raises(DiffLoRAError, match="use one of tiny"):
        preset("huge")


def test_rate_rises_linearly_and_ends_at_zero() -> None:
    rates = [rate_at(step, 100, 1.0, 10) for step in range(100)]
    assert rates[4] == 0.5 and rates[9] == 1.0
    assert rates[-1] < 1e-3 and all(a >= b for a, b in itertools.pairwise(rates[10:]))
