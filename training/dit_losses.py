"""What the DiT is trained on, its two losses, and its validation.

The latent loss is the paper's; the image loss is ours (`training.image_loss`).
Letters: B rows, N reference photos, K pictures, T latent tokens, C latent channels, P parameters of one LoRA.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from difflora.autoencoder import explained_variance
from difflora.base_model import BaseModel
from difflora.checkpoint import Recommended
from difflora.diffusion import diffusion_loss, q_sample
from difflora.hypernetwork import LoraHypernetwork
from difflora.layout import LoraLayout, SharedDown
from difflora.normalisation import WeightRows
from difflora.picture_loss import picture_losses
from training.image_loss import image_loss_weight, noised_latents
from training.photo_pool import PhotoPool, choose_photos
from training.presets import DitTrainingConfig
from training.settings import RegressorTrainingConfig
from training.train_lae import first_rows, noise_like

HELD_OUT_ROWS = 64


@dataclass(frozen=True, eq=False)
class Data:
    """Everything that is trained on.

    Args:
        flat: (n, P) raw weights of the library, in memory or on disk.
        people: (n,) row of each in the pool.
        training: library rows that are trained on.
        held_out: library rows that are only measured.
        pool: photos of the training people, with and without a LoRA.
        validation: photos of the validation people.
        base: frozen base model.
        shared_down: module -> lora_down.
    """

    flat: WeightRows
    people: Tensor
    training: slice
    held_out: slice
    pool: PhotoPool
    validation: PhotoPool
    base: BaseModel
    shared_down: SharedDown

    def pool_to_library(self) -> Tensor:
        """Library row of every person of the pool, -1 without a LoRA, (M,)."""
        rows = torch.full((len(self.pool),), -1, device=self.people.device)  # (M,)
        rows[self.people] = torch.arange(len(self.people), device=self.people.device)
        return rows

    def image_people(self) -> Tensor:
        """Rows of the pool for the image loss, (M',): everybody with a face but the held-out people."""
        allowed = self.pool.valid.any(dim=1)  # (M,)
        allowed[self.people[self.held_out]] = False
        return allowed.nonzero().squeeze(1)  # (M',)


def noisy_features(
    features: tuple[Tensor, Tensor, Tensor], amount: float, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Noise on face (B, N, 512) and image features (B, N, C), relative to their own size; the mask stays."""
    face, image, mask = features
    noisy = [
        x + amount * x.square().mean(dim=-1, keepdim=True).sqrt() * noise_like(x, generator)
        for x in (face, image)
    ]  # (B, N, 512), (B, N, C)
    return noisy[0], noisy[1], mask


def latent_loss(
    networks: LoraHypernetwork,
    latents: Tensor,
    data: Data,
    config: DitTrainingConfig,
    generator: torch.Generator,
) -> Tensor:
    """The diffusion loss on library latents (n, T, C), one random row and random photos each -> 0-d."""
    diffusion = networks.config.diffusion
    rows = torch.randint(data.training.stop, (config.batch_size,), generator=generator).to(
        latents.device
    )  # (B,)
    people = data.people[rows]  # (B,)
    references, mask, _ = choose_photos(data.pool.valid[people], config.max_photos, 0, generator)  # (B, N)
    dropped = (
        torch.rand(len(rows), 1, generator=generator).to(mask.device) < config.condition_dropout
    )  # (B, 1)
    features = data.pool.references(people, references, mask & ~dropped)
    condition = networks.condition(*noisy_features(features, config.feature_noise, generator))
    x0 = latents[rows]  # (B, T, C)
    x0 = x0 + config.latent_noise * noise_like(x0, generator)  # (B, T, C)
    strata = torch.arange(len(rows)) + torch.rand(len(rows), generator=generator)  # (B,)
    time = (strata / len(rows)).to(x0)  # (B,)
    alpha, sigma = diffusion.alpha_sigma(time)  # (B,) each
    x_t = q_sample(x0, noise_like(x0, generator), alpha, sigma)  # (B, T, C)
    return diffusion_loss(
        networks.predict_x0(x_t, time, condition), x0, alpha, sigma, diffusion.snr_cap
    ).mean()


def image_loss(
    networks: LoraHypernetwork,
    average: LoraHypernetwork,
    latents: Tensor,
    library_row: Tensor,
    candidates: Tensor,
    data: Data,
    config: DitTrainingConfig,
    generator: torch.Generator,
) -> Tensor:
    """The base model's loss on pictures of random people, drawn with their predicted LoRAs -> 0-d.

    Args:
        networks: trained.
        average: their moving average.
        latents: (n, T, C) of the library.
        library_row: (M,) from `Data.pool_to_library`.
        candidates: (M',) from `Data.image_people`.
        data: pictures and base model.
        config: how.
        generator: on the CPU.
    """
    chosen = torch.randint(len(candidates), (config.image_people,), generator=generator)
    people = candidates[chosen.to(candidates.device)]  # (B,)
    own = library_row[people]  # (B,)
    references, mask, pictures = choose_photos(
        data.pool.valid[people], config.max_photos, config.pictures_per_person, generator
    )  # (B, N), (B, N), (B, K)
    features = data.pool.references(people, references, mask)
    with torch.no_grad():
        teacher = average.condition(*features)
    x_t, time = noised_latents(
        average, teacher, latents[own.clamp_min(0)], own >= 0, config, generator
    )  # (B, T, C), (B,)
    condition = networks.condition(*noisy_features(features, config.feature_noise, generator))
    flat = networks.decode_latents(networks.predict_x0(x_t, time, condition))  # (B, P)
    image_latents, prompts = data.pool.pictures(people, pictures)  # (B*K, Cl, h, w), (B*K, L, W)
    losses = picture_losses(
        data.base,
        networks.layout,
        flat,
        data.shared_down,
        image_latents,
        prompts,
        generator,
        config.precision,
    )  # (B,)
    return (image_loss_weight(networks, time, config.image_loss_floor) * losses).mean()


@torch.no_grad()
def measure(
    networks: LoraHypernetwork, data: Data, config: DitTrainingConfig, people_at_once: int
) -> dict[str, float]:
    """Validation: R2 of held-out library weights, and how much the predicted LoRAs help the base model.

    `image_gain` is 1 - (loss with the LoRA) / (loss of the base model) on pictures of validation people, of
    whom one photo was seen; `image_gain_zero` the same for the zero-noise start.
    """
    generator, device = torch.Generator().manual_seed(0), data.people.device

    def generate(pool: PhotoPool, rows: Tensor, noise_scale: float) -> Tensor:
        references, mask, _ = choose_photos(
            pool.valid[rows], 1, 0, torch.Generator().manual_seed(1)
        )  # (B, 1)
        condition = networks.condition(*pool.references(rows, references, mask))
        noise = torch.randn(len(rows), *networks.latent_mean.shape, generator=generator).to(
            device
        )  # (B, T, C)
        return networks.decode_latents(
            networks.sample(condition, noise, Recommended.num_steps, noise_scale=noise_scale)
        )  # (B, P)

    rows = first_rows(data.held_out, HELD_OUT_ROWS)  # (B,)
    held_out = data.flat[rows].to(networks.weight_mean)  # (B, P)
    normalise = networks.normalisation.normalise
    guess = generate(data.pool, data.people[rows.to(device)], 0.0)  # (B, P)
    values = {"held_out_r2": float(explained_variance(normalise(guess), normalise(held_out)))}

    everybody = torch.arange(len(data.validation), device=device)  # (B,)
    for name, noise_scale in (("image_gain", 1.0), ("image_gain_zero", 0.0)):
        flat = generate(data.validation, everybody, noise_scale)  # (B, P)
        values[name] = image_gain(
            data.base, networks.layout, data.shared_down, data.validation, flat, config, people_at_once
        )
    return values


@torch.no_grad()
def image_gain(
    base: BaseModel,
    layout: LoraLayout,
    shared_down: SharedDown,
    validation: PhotoPool,
    flat: Tensor,
    config: DitTrainingConfig | RegressorTrainingConfig,
    people_at_once: int,
) -> float:
    """1 - (loss with the LoRAs) / (loss of the base model) on pictures of validation people.

    Args:
        base: frozen base model.
        layout: of the LoRAs.
        shared_down: module -> lora_down.
        validation: photos of B people.
        flat: (B, P) their LoRAs, made from the first reference photo that `choose_photos` draws with seed 1.
        config: for the number of pictures and the precision.
        people_at_once: people in one pass of the base model.
    """
    everybody = torch.arange(len(validation), device=flat.device)  # (B,)
    fixed = torch.Generator().manual_seed(1)
    *_, pictures = choose_photos(validation.valid, 1, config.pictures_per_person, fixed)  # (B, K)
    image_latents, prompts = validation.pictures(everybody, pictures)  # (B*K, Cl, h, w), (B*K, L, W)

    def loss(strength: float) -> float:
        fixed = torch.Generator().manual_seed(2)
        rows = people_at_once * config.pictures_per_person
        groups = zip(flat.split(people_at_once), image_latents.split(rows), prompts.split(rows), strict=True)
        losses = [
            picture_losses(base, layout, own, shared_down, *drawn, fixed, config.precision, strength)
            for own, *drawn in groups
        ]
        return float(torch.cat(losses).mean())

    return 1 - loss(1.0) / loss(0.0)
