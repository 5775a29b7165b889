"""Train the end-to-end regressor on for likeness: `python -m training.tune_regressor --start REGRESSOR`.

The control that has what DiffLoRA has: the same people, pictures and recognisers as `train_correction`, but
photos become coefficients of bases instead of a latent. All of it is trained.
Resumable: started again with the same settings, it goes on where it stopped.

Letters: B people of a group, m choices of photos, N photos of each, C feature width, P parameters of a LoRA.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.features import IdentityFeatures, pad_photos
from difflora.layout import SharedDown
from training.basis_regressor import BasisRegressor, load_regressor, save_regressor
from training.common import say
from training.dit_losses import noisy_features
from training.groups import Group, Inputs, group_options, group_step, train_on_groups
from training.presets import apply_options, preset
from training.settings import RegressorTuningConfig
from training.steps import Step


def read_photos(features: list[IdentityFeatures]) -> Inputs:
    """Face (m, N, 512), image features (m, N, C - 512), mask (m, N) of m choices of photos."""
    return pad_photos(features, "cpu")


def tuning_step(
    base: BaseModel,
    regressor: BasisRegressor,
    shared_down: SharedDown,
    groups: Sequence[Group],
    config: RegressorTuningConfig,
) -> Step:
    """What makes the loss of a step: the LoRAs that the regressor makes of photos."""

    def regressed(inputs: Inputs, generator: torch.Generator) -> Tensor:
        face, image, mask = inputs  # (B, N, 512), (B, N, C - 512), (B, N)
        return regressor(*noisy_features((face, image, mask), config.feature_noise, generator))  # (B, P)

    return group_step(base, regressor.layout, shared_down, groups, config.pictures_per_step, regressed)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tune_regressor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--start", type=Path, required=True, help="what train_regressor wrote")
    group_options(parser, RegressorTuningConfig, "runs/regressor_tuned")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, train, save."""
    options = read_options(arguments)
    config = apply_options(RegressorTuningConfig(), options)
    regressor, shared_down, made_for = load_regressor(options.start, options.device)
    base = BaseModel.load(options.base, options.device)
    if made_for != base.fingerprint:
        raise CheckpointError(
            f"{options.start} was made for the base model {made_for}, {base.name} is {base.fingerprint}: "
            "give the same one with --base"
        )
    regressor.requires_grad_(True)
    train_on_groups(
        options,
        config,
        base,
        preset("synthetic").encoders(options.face_pack, options.image_encoder, options.device),
        read_photos,
        regressor,
        lambda groups: tuning_step(base, regressor, shared_down, groups, config),
    )
    path = save_regressor(options.out / "regressor.safetensors", regressor, shared_down, made_for)
    say(f"regressor saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
