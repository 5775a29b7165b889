"""One table of presets: the sizes of all networks, and how LoRAs, LAE and DiT are trained.

Every field of the training configs is also a command-line option (`--learning-rate 1e-3`).
"""

import argparse
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from difflora.autoencoder import LaeConfig
from difflora.diffusion import DiffusionConfig
from difflora.errors import DiffLoRAError
from difflora.features import FaceAnalyzer, ImageEncoder
from difflora.hypernetwork import HypernetworkConfig
from difflora.mixing import MifConfig
from difflora.synthetic import world
from difflora.transformer import DitConfig
from training.base_presets import SD15, SDXL, BasePreset
from training.lora_library import LibraryConfig
from training.settings import DitTrainingConfig, LaeTrainingConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class Drawing:
    """How the base model draws when strengths are compared.

    Args:
        num_steps: of the sampler.
        guidance_scale: classifier-free guidance of it; 1 is none.
        people_at_once: validation people in one pass of the base model; fewer need less memory.
    """

    num_steps: int = 12
    guidance_scale: float = world.PICTURE_GUIDANCE
    people_at_once: int = 64


@dataclass(frozen=True)
class Files:
    """Where base model, encoders and photos are if nothing else is said; None where users bring their own."""

    base: Path | None = None
    face_pack: Path | None = None
    image_encoder: Path | None = None
    photos: Path | None = None


EMBEDDED_FILES = Files(world.BASE_MODEL, world.FACE_PACK, world.IMAGE_ENCODER)


@dataclass(frozen=True)
class Preset:
    """Sizes of the networks and how they are trained; widths of features are filled in from the encoders.

    Args:
        networks: sizes of LAE, MIF and DiT.
        lae: how the LAE is trained.
        dit: how MIF and DiT are trained.
        lora_library: how the LoRAs are made.
        drawing: how the base model draws.
        files: where things are by default.
        base: what kind of base model it is for; None for the synthetic one.
    """

    networks: HypernetworkConfig
    lae: LaeTrainingConfig = field(default_factory=LaeTrainingConfig)
    dit: DitTrainingConfig = field(default_factory=DitTrainingConfig)
    lora_library: LibraryConfig = field(default_factory=LibraryConfig)
    drawing: Drawing = field(default_factory=Drawing)
    files: Files = EMBEDDED_FILES
    base: BasePreset | None = None

    def file(self, kind: str, given: Path | None) -> Path:
        """A path from the command line, else the preset's.

        Args:
            kind: field of `Files`.
            given: what the option says, if it was used.

        Raises:
            DiffLoRAError: neither says where it is.
        """
        path = given or getattr(self.files, kind)
        if path is None:
            hints = {} if self.base is None else self.base.hints()
            option = kind.replace("_", "-")
            raise DiffLoRAError(f"--{option} is missing: give {hints.get(kind, 'its path')}")
        return path

    def encoders(
        self, face_pack: Path | None = None, image_encoder: Path | None = None, device: str = "cpu"
    ) -> tuple[FaceAnalyzer, ImageEncoder]:
        """What reads photos for these networks; paths as for `file`, which says what is raised."""
        tower, grid = self.file("image_encoder", image_encoder), self.networks.mif.image_grid
        return FaceAnalyzer(self.file("face_pack", face_pack)), ImageEncoder(tower, device, grid=grid)


SYNTHETIC = HypernetworkConfig(
    LaeConfig(latent_tokens=16, latent_channels=12, token_size=512, token_width=4, width=32, linear_rank=192),
    MifConfig(width=128, image_grid=4),
    DitConfig(latent_tokens=16, latent_channels=12, condition_width=128, width=128, depth=4),
    linear_prior=True,
)

WEIGHT_SPACE: dict[
    str, Any
] = {  # as in the paper; with a large GPU, --image-loss-weight 20 goes on from there
    "image_loss_weight": 0.0,
    "warmup": 1000,
    "validate_every": 5000,
    "precision": "bfloat16",
}
PHOTO_LIBRARY: dict[str, Any] = {  # as weights2weights trained its library, with the shared lora_down frozen
    "targets": "attention",
    "down": "random",
    "down_people": 4,
    "pictures": 10,
    "steps": 800,
    "pictures_per_step": 1,
    "learning_rate": 4e-4,
    "average_from": 0.8,
    "precision": "bfloat16",
    "checkpointing": True,
}

PRESETS = {
    # a few seconds: for tests and for trying out the commands
    "tiny": Preset(
        HypernetworkConfig(
            LaeConfig(
                latent_tokens=4, latent_channels=8, token_size=256, token_width=8, width=32, linear_rank=16
            ),
            MifConfig(width=32, heads=2, image_grid=2),
            DitConfig(latent_tokens=4, latent_channels=8, condition_width=32, width=32, depth=1, heads=2),
            linear_prior=True,
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
    # the embedded world on a CPU core, a few minutes, from a library that was refined on pictures
    "synthetic": Preset(
        SYNTHETIC,
        LaeTrainingConfig(num_steps=150, learning_rate=3e-4),
        DitTrainingConfig(
            num_steps=900, batch_size=32, learning_rate=1e-3, image_loss_weight=0.0, image_loss_from=0
        ),
    ),
    # from there (--init) on in image space, an hour and a half; hardly any pull towards the library's latents
    "synthetic-image": Preset(
        SYNTHETIC,
        LaeTrainingConfig(num_steps=150, learning_rate=3e-4),
        DitTrainingConfig(
            num_steps=3600,
            batch_size=32,
            learning_rate=8e-4,
            decoder_learning_rate=4e-4,
            warmup=20,
            ema_decay=0.999,
            latent_loss_weight=0.05,
            image_loss_from=0,
            pool_people=4000,
            validate_every=200,
        ),
    ),
    # without what is ours (linear path and prior, patches); from trained LoRAs (--library runs/loras)
    "paper": Preset(
        replace(
            SYNTHETIC,
            lae=replace(SYNTHETIC.lae, linear_rank=0, token_width=32, width=128),
            mif=replace(SYNTHETIC.mif, image_grid=0),
            linear_prior=False,
        ),
        LaeTrainingConfig(num_steps=700),
        DitTrainingConfig(num_steps=1500, batch_size=32, learning_rate=1e-3, image_loss_weight=0.0),
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
            LaeConfig(
                latent_tokens=16,
                latent_channels=16,
                token_size=512,
                token_width=8,
                width=256,
                linear_rank=256,
            ),
            MifConfig(width=256, image_grid=4),
            DitConfig(latent_tokens=16, latent_channels=16, condition_width=256, width=256, depth=6),
            linear_prior=True,
        ),
        LaeTrainingConfig(num_steps=4000, batch_size=128, learning_rate=3e-4),
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
    # Real base models: sizes chosen by cost (docs/presets.md), rates by what others report for such LoRAs
    # (method 3 of weights2weights, 2406.09413); no weights of them were at hand, so nothing is tuned.
    "sd15": Preset(
        HypernetworkConfig(
            LaeConfig(
                latent_tokens=32, latent_channels=32, token_size=512, token_width=32, width=256, stages=3
            ),
            MifConfig(image_width=768, width=512, condition_tokens=16, heads=8),
            DitConfig(latent_tokens=32, latent_channels=32, condition_width=512, width=512, depth=8, heads=8),
        ),
        LaeTrainingConfig(num_steps=20_000, batch_size=64, learning_rate=5e-4, warmup=500),
        DitTrainingConfig(num_steps=100_000, batch_size=256, learning_rate=2e-4, **WEIGHT_SPACE),
        LibraryConfig(batch=8, **PHOTO_LIBRARY),
        Drawing(num_steps=20, guidance_scale=6.0, people_at_once=4),
        Files(),
        SD15,
    ),
    "sdxl": Preset(
        HypernetworkConfig(
            LaeConfig(
                latent_tokens=32, latent_channels=64, token_size=1024, token_width=16, width=384, stages=3
            ),
            MifConfig(image_width=768, width=768, condition_tokens=16, heads=12),
            DitConfig(
                latent_tokens=32, latent_channels=64, condition_width=768, width=768, depth=8, heads=12
            ),
        ),
        LaeTrainingConfig(num_steps=20_000, batch_size=32, learning_rate=3e-4, warmup=500),
        DitTrainingConfig(num_steps=100_000, batch_size=256, learning_rate=1e-4, **WEIGHT_SPACE),
        LibraryConfig(batch=1, **PHOTO_LIBRARY),
        Drawing(num_steps=20, guidance_scale=5.0, people_at_once=1),
        Files(),
        SDXL,
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
        name, kind_of_value = f"--{entry.name.replace('_', '-')}", type(entry.default)
        if kind_of_value is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
        else:
            group.add_argument(name, type=kind_of_value, metavar=kind_of_value.__name__)


def apply_options(config: Config, options: argparse.Namespace) -> Config:
    """The config with every field that was given on the command line."""
    names = (entry.name for entry in fields(config))  # type: ignore[arg-type]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    return replace(config, **given)  # type: ignore[type-var]
