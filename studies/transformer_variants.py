"""The MIF + DiT that the study trains: one setting changed, everything else and the budget the same.

Letters: n LoRAs of the library, B people, N photos, T latent tokens, C channels, P parameters of one LoRA.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.checkpoint import Recommended
from difflora.diffusion import DiffusionConfig, draw_noise
from difflora.features import ImageEncoder
from difflora.hypernetwork import LoraHypernetwork
from difflora.mixing import MifConfig
from training import train_dit
from training.common import load_state, open_run, read_metrics
from training.dit_losses import Data
from training.lora_library import Library
from training.photo_pool import PhotoPool
from training.presets import fit_features, preset
from training.settings import DitTrainingConfig
from training.train_lae import TrainedLae, split_library

PROJECTED = MifConfig.image_width
"""Numbers of the synthetic encoder's projection, which stand in front of the patches."""
LONGER = 1_000_000
"""Steps until the next measurement: none but the last."""


@dataclass(frozen=True)
class Variant:
    """One setting of MIF + DiT.

    Args:
        name: of its run folder.
        sections: section of the report -> what the row is called there.
        face: whether MIF sees the face embedding.
        image: whether it sees the image features.
        grid: whether these hold the patches beside CLIP's embedding, as ours do and the paper's do not.
        prediction: what the DiT predicts.
        linear_prior: whether it corrects a linear guess, as ours does, or guesses alone, as the paper's.
        budget: how many times the steps of the others; 0 is one step, which changes next to nothing.
        people: predicted LoRAs that are trained on; None for the whole library, trained ones and predicted.
        after: variant to start from, for a second stage.
        image_loss: whether that stage has the image loss beside the loss on latents.
    """

    name: str
    sections: Mapping[str, str] = field(default_factory=dict)
    face: bool = True
    image: bool = True
    grid: bool = True
    prediction: str = DiffusionConfig.prediction
    linear_prior: bool = True
    budget: int = 1
    people: int | None = None
    after: str | None = None
    image_loss: bool = False

    def features(self, pool: PhotoPool) -> PhotoPool:
        """The pool as this variant sees it: what it may not see is zero, in training and after it."""
        face = pool.face if self.face else torch.zeros_like(pool.face)
        image = pool.image if self.image else torch.zeros_like(pool.image)
        if not self.grid:
            image = torch.cat([image[..., :PROJECTED], torch.zeros_like(image[..., PROJECTED:])], dim=-1)
        return replace(pool, face=face, image=image)


VARIANTS = (
    Variant(
        "mixed",
        {
            "features": "face and image (MIF)",
            "prediction": "x0, linear prior",
            "people": "{whole} predicted{trained}",
            "loss": "weight space",
        },
    ),
    Variant("no_grid", {"features": "without patches"}, grid=False),
    Variant("face_only", {"features": "face only"}, image=False),
    Variant("image_only", {"features": "image only"}, face=False),
    Variant("prior_alone", {"prediction": "the linear guess alone"}, budget=0),
    Variant("no_prior", {"prediction": "x0"}, linear_prior=False),
    Variant("v", {"prediction": "v"}, prediction="v", linear_prior=False),
    Variant("no_prior_longer", {"prediction": "x0, five times the steps"}, linear_prior=False, budget=5),
    Variant(
        "v_longer", {"prediction": "v, five times the steps"}, prediction="v", linear_prior=False, budget=5
    ),
    *(Variant(f"people_{n}", {"people": f"{n} predicted"}, people=n) for n in (64, 160, 320, 800)),
    Variant("longer", {"loss": "weight space, {more} steps more"}, after="mixed"),
    Variant("image_loss", {"loss": "{more} steps more with the image loss"}, after="mixed", image_loss=True),
)


@dataclass(frozen=True, eq=False)
class Material:
    """What all variants are trained on and with.

    Args:
        loras: trained LoRAs first, then predicted ones.
        trained: how many of them were trained.
        lae: trained on all of them.
        pool: photos of the library's people and more.
        validation: photos of the B people who are asked about.
        base: frozen base model.
        image_encoder: for the width of its features.
    """

    loras: Library
    trained: int
    lae: TrainedLae
    pool: PhotoPool
    validation: PhotoPool
    base: BaseModel
    image_encoder: ImageEncoder

    @property
    def whole(self) -> int:
        """Predicted LoRAs that the whole library trains on."""
        return split_library(len(self.loras.people), self.lae.held_out)[0].stop - self.trained

    def data(self, variant: Variant) -> Data:
        """The rows of a variant; the held-out ones are the same for all."""
        training, held_out = split_library(len(self.loras.people), self.lae.held_out)
        chosen = torch.arange(training.stop)  # (n,)
        if variant.people is not None:
            chosen = torch.arange(self.trained, self.trained + variant.people)
        rows = torch.cat([chosen, torch.arange(held_out.start, held_out.stop)])
        return Data(
            self.loras.flat[rows],
            self.loras.people[rows],
            slice(0, len(chosen)),
            slice(len(chosen), len(rows)),
            variant.features(self.pool),
            variant.features(self.validation),
            self.base,
            self.loras.shared_down,
        )


def training_config(variant: Variant, num_steps: int, more_steps: int, seed: int) -> DitTrainingConfig:
    """How a variant is trained: the preset, with the study's number of steps."""
    steps = max(1, variant.budget * num_steps)
    config = replace(preset("synthetic").dit, num_steps=steps, validate_every=LONGER, seed=seed)
    if variant.after is None:
        return config
    image_stage = preset("synthetic-image").dit
    config = replace(image_stage, num_steps=more_steps, warmup=5, validate_every=LONGER, seed=seed)
    config = replace(config, ema_decay=0.95)  # of 60 steps: the image stage's own would hold on to the start
    return config if variant.image_loss else replace(config, image_loss_weight=0.0)


def train_variant(
    variant: Variant, material: Material, config: DitTrainingConfig, folder: Path
) -> tuple[LoraHypernetwork, dict[str, float]]:
    """Train a variant, or go on with it, or read it.

    Args:
        variant: what to change.
        material: what to train on.
        config: from `training_config`.
        folder: of all variants.

    Returns:
        Its averaged networks, and their last measurements: image gains and R2 of held-out weights.
    """
    own = folder / variant.name
    chosen = preset("synthetic")
    sizes = replace(
        fit_features(chosen.networks, 512, material.image_encoder.width),
        lae=material.lae.lae.config,
        diffusion=DiffusionConfig(prediction=variant.prediction),
        linear_prior=variant.linear_prior,
    )
    changed = asdict(variant) | {"sections": None}
    del changed["budget"]  # which the training says
    facts = {"variant": changed, "training": asdict(config)}
    open_run(own, {**facts, "library": len(material.loras.people), "base": material.base.fingerprint})
    torch.manual_seed(config.seed)
    networks = LoraHypernetwork(material.lae.layout, sizes)
    networks.lae.load_state_dict(material.lae.lae.state_dict())
    networks.set_normalisation(material.lae.normalisation)
    if variant.after is not None:
        networks.load_state_dict(load_state(folder / variant.after / "state.safetensors")["average"])
    networks = train_dit.train(networks, material.data(variant), config, own)
    keys = ("image_gain_zero", "held_out_r2")
    last = next(row for row in reversed(read_metrics(own / "metrics.jsonl")) if "image_gain_zero" in row)
    return networks, {key: round(last[key], 4) for key in keys}


def sample_flat(
    networks: LoraHypernetwork,
    features: tuple[Tensor, Tensor, Tensor],
    noise_seed: int = 0,
    num_steps: int = Recommended.num_steps,
    guidance_scale: float = Recommended.guidance_scale,
    noise_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """LoRAs of B people.

    Args:
        networks: trained.
        features: face (B, N, 512), image (B, N, C), mask (B, N).
        noise_seed: of the starting noise, the same for everybody.
        num_steps: of the sampler.
        guidance_scale: 1 is none.
        noise_scale: 0 is the mean prediction.

    Returns:
        Latents (B, T, C) and flat weights (B, P).
    """
    generator = torch.Generator().manual_seed(noise_seed)
    noise = draw_noise(tuple(networks.latent_mean.shape), generator, networks.latent_mean.device)  # (T, C)
    noise = noise.expand(len(features[0]), -1, -1)  # (B, T, C)
    with torch.no_grad():
        condition = networks.condition(*features)
        latents = networks.sample(condition, noise, num_steps, guidance_scale, noise_scale)
        return latents, networks.decode_latents(latents)
