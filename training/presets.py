"""How LAE and DiT are trained, and one table of presets with the sizes of all networks.

Every field of the two training configs is also a command-line option (`--learning-rate 1e-3`).
"""

import argparse
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from difflora.autoencoder import LaeConfig
from difflora.diffusion import DiffusionConfig
from difflora.errors import DiffLoRAError
from difflora.hypernetwork import HypernetworkConfig
from difflora.mixing import MifConfig
from difflora.transformer import DitConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class LaeTrainingConfig:
    """How the LAE is trained.

    Args:
        num_steps: optimiser steps.
        batch_size: LoRAs per step.
        learning_rate: peak rate of AdamW; linear warm-up, then cosine to zero.
        warmup: steps of the warm-up.
        weight_decay: AdamW's. A library of few people is memorised without it.
        ema_decay: of the averaged weights, which are the ones that are saved.
        mixup: fraction of the LoRAs that are a convex combination of two people's.
        input_noise: deviation of the noise on the encoder's (normalised) input; the target stays clean.
        latent_noise: deviation of the noise on the latent, relative to the latent's own: what mattered in
            p-diff.
        held_out: fraction of the library's people, its last ones, that are only measured.
        seed: drives everything.
    """

    num_steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    mixup: float = 0.5
    input_noise: float = 0.3
    latent_noise: float = 0.1
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class DitTrainingConfig:
    """How MIF and DiT are trained (and the LAE's decoder with them, if the image loss is on).

    `image_loss_weight` 0 is the weight-space recipe of the paper: only the loss on the latent.

    Args:
        num_steps: optimiser steps.
        batch_size: library LoRAs per step.
        learning_rate: peak rate of AdamW for MIF and DiT; linear warm-up, then cosine to zero.
        decoder_learning_rate: the same for the LAE's decoder while the image loss is on; 0 freezes it.
        warmup: steps of the warm-up.
        weight_decay: AdamW's.
        ema_decay: of the averaged weights, which are the ones that are saved.
        condition_dropout: fraction of rows that see no photo, for classifier-free guidance.
        max_photos: each row sees 1 .. max_photos random photos of its person.
        latent_noise: deviation of the noise on clean latents, an augmentation against memorising few people.
        feature_noise: relative deviation of the noise on both kinds of features.
        latent_loss_weight: of the diffusion loss on library latents.
        image_loss_weight: of the base model's own loss on pictures drawn with the predicted LoRA.
        image_loss_from: first step with the image loss; before it a step is some 30 times cheaper.
        image_people: people per step in the image loss; they need no LoRA of their own.
        pictures_per_person: pictures of each, none of them shown as a reference photo.
        highest_noise_fraction: rows of the image loss at time 1, where only the photos can tell who it is.
        zero_start_fraction: of those rows, the ones that start from zeros as the zero-noise sampler does.
        image_loss_floor: weight of the image loss at time 1 over that at time 0; between them it follows
            alpha^2.
        pool_people: people whose photos are rendered for features and pictures.
        photos_per_person: photos of each (F).
        validation_people: people of the validation split that are measured and choose the settings.
        validate_every: steps between two measurements.
        precision: autocast of the base model's denoiser: "float32" or "bfloat16".
        seed: drives everything.
    """

    num_steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 5e-4
    decoder_learning_rate: float = 2e-4
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.998
    condition_dropout: float = 0.1
    max_photos: int = 4
    latent_noise: float = 0.1
    feature_noise: float = 0.1
    latent_loss_weight: float = 1.0
    image_loss_weight: float = 20.0
    image_loss_from: int = 1000
    image_people: int = 16
    pictures_per_person: int = 4
    highest_noise_fraction: float = 0.5
    zero_start_fraction: float = 0.25
    image_loss_floor: float = 0.5
    pool_people: int = 4000
    photos_per_person: int = 8
    validation_people: int = 32
    validate_every: int = 250
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """Sizes of the networks and how they are trained; widths of features are filled in from the encoders."""

    networks: HypernetworkConfig
    lae: LaeTrainingConfig = field(default_factory=LaeTrainingConfig)
    dit: DitTrainingConfig = field(default_factory=DitTrainingConfig)


SYNTHETIC = HypernetworkConfig(
    LaeConfig(latent_tokens=16, latent_channels=16, token_size=512, token_width=32, width=128),
    MifConfig(width=128),
    DitConfig(latent_tokens=16, latent_channels=16, condition_width=128, width=128, depth=4),
)

PRESETS = {
    # a few seconds: for tests and for trying out the commands
    "tiny": Preset(
        HypernetworkConfig(
            LaeConfig(latent_tokens=4, latent_channels=8, token_size=256, token_width=8, width=32),
            MifConfig(width=32, heads=2),
            DitConfig(latent_tokens=4, latent_channels=8, condition_width=32, width=32, depth=1, heads=2),
        ),
        LaeTrainingConfig(num_steps=20, batch_size=8, warmup=5),
        DitTrainingConfig(
            num_steps=6,
            batch_size=8,
            image_loss_from=3,
            image_people=2,
            pictures_per_person=2,
            warmup=2,
            pool_people=24,
            photos_per_person=6,
            validation_people=4,
            validate_every=3,
        ),
    ),
    # the embedded world on a CPU core, a few minutes: weight space only, as in the paper
    "synthetic": Preset(
        SYNTHETIC,
        LaeTrainingConfig(num_steps=700),
        DitTrainingConfig(
            num_steps=1500, batch_size=32, learning_rate=1e-3, image_loss_weight=0.0, pool_people=1500
        ),
    ),
    # from there (--init) on in image space, some ten minutes
    "synthetic-image": Preset(
        SYNTHETIC,
        LaeTrainingConfig(num_steps=700),
        DitTrainingConfig(
            num_steps=700,
            batch_size=32,
            learning_rate=4e-4,
            warmup=20,
            image_loss_from=0,
            pool_people=1500,
            validate_every=150,
        ),
    ),
    # weights2weights (docs/import_w2w.md) on one GPU: 64,974 people allow a larger latent.
    # Derived, not tuned: 1,024 numbers of latent, as many as its authors keep of principal components.
    "w2w": Preset(
        HypernetworkConfig(
            LaeConfig(latent_tokens=32, latent_channels=32, token_size=512, token_width=32, width=256),
            MifConfig(width=512),
            DitConfig(latent_tokens=32, latent_channels=32, condition_width=512, width=512, depth=8),
        ),
        LaeTrainingConfig(num_steps=20_000, batch_size=64, warmup=500, mixup=0.2, held_out=0.01),
        DitTrainingConfig(
            num_steps=60_000,
            batch_size=256,
            learning_rate=3e-4,
            warmup=500,
            ema_decay=0.9995,
            image_loss_weight=0.0,
            pictures_per_person=1,
            validation_people=8,
            validate_every=5000,
            precision="bfloat16",
        ),
    ),
    # the embedded world on a GPU
    "synthetic-gpu": Preset(
        HypernetworkConfig(
            LaeConfig(latent_tokens=16, latent_channels=16, token_size=512, token_width=64, width=256),
            MifConfig(width=256),
            DitConfig(latent_tokens=16, latent_channels=16, condition_width=256, width=256, depth=6),
        ),
        LaeTrainingConfig(num_steps=4000, batch_size=128),
        DitTrainingConfig(
            num_steps=12000,
            batch_size=256,
            image_people=96,
            pool_people=12000,
            validation_people=64,
            validate_every=500,
            precision="bfloat16",
        ),
    ),
}


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        DiffLoRAError: there is none of that name.
    """
    if name not in PRESETS:
        raise DiffLoRAError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def fit_features(networks: HypernetworkConfig, face_width: int, image_width: int) -> HypernetworkConfig:
    """The same sizes, for face embeddings and image features of other widths."""
    return replace(networks, mif=replace(networks.mif, face_width=face_width, image_width=image_width))


def diffusion_options(parser: argparse.ArgumentParser) -> None:
    """Add the choices of `DiffusionConfig` that are worth trying."""
    parser.add_argument("--schedule", default=DiffusionConfig.schedule, help="cosine or linear_logsnr")
    parser.add_argument("--prediction", default=DiffusionConfig.prediction, help="x0 or v")


def config_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add one option per field of a training config; the preset's value is the default."""
    group = parser.add_argument_group("settings (default: the preset's)")
    for entry in fields(kind):
        value_type = type(entry.default)
        group.add_argument(f"--{entry.name.replace('_', '-')}", type=value_type, metavar=value_type.__name__)


def apply_options(config: Config, options: argparse.Namespace) -> Config:
    """The config with every field that was given on the command line."""
    names = (entry.name for entry in fields(config))  # type: ignore[arg-type]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    return replace(config, **given)  # type: ignore[type-var]
