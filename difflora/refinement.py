"""Refine a sampled LoRA on the reference photos, in the latent space of the autoencoder.

A few gradient steps on the base model's own loss of the photos, through the frozen LAE decoder and the frozen
base model. Training a LoRA on one photo overfits it; here only the latent moves, some hundred numbers instead
of all weights, from where the diffusion model put it. [ours]

Letters: B people, N photos of each, K noised photos per step, T latent tokens, C latent channels,
(Cl, h, w) a picture's latent, L prompt tokens, W text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base_model import BaseModel
from .diffusion import Progress
from .errors import DiffLoRAError
from .hypernetwork import LoraHypernetwork
from .latents import LoraLatent
from .layout import SharedDown
from .model import DiffLoRA
from .photos import Photo, as_photos, centre_square
from .picture_loss import picture_losses

CAPTION = "a photo of a person"
"""Of photos without a caption: the gain is then smaller, as the LoRA has to explain the clothes as well."""


@dataclass(frozen=True)
class RefinementConfig:
    """How a latent is refined; chosen on validation people of the synthetic world.

    Args:
        num_steps: gradient steps.
        learning_rate: of Adam at the first step, in deviations of the latent; falls linearly to zero.
        noises: K, noised photos per step and person; photos take turns.
        precision: autocast of the base model: "float32", "bfloat16" or "float16".
    """

    num_steps: int = 10
    learning_rate: float = 0.03
    noises: int = 4
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        if self.num_steps < 1 or self.noises < 1 or not self.learning_rate > 0:
            raise DiffLoRAError(
                f"refining with {self.num_steps} steps of {self.noises} noises at rate "
                f"{self.learning_rate:g}: all three must be above 0"
            )


def refine_latents(
    networks: LoraHypernetwork,
    shared_down: SharedDown | None,
    base: BaseModel,
    latents: Tensor,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    config: RefinementConfig,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Refine the latents of several people at once, each on photos of their own.

    Args:
        networks: decode the latents; stay as they are.
        shared_down: module -> lora_down.
        base: the checkpoint's base model; stays as it is.
        latents: (B, T, C) standardised.
        image_latents: (B, N, Cl, h, w) of the photos.
        prompt_embeds: (B, N, L, W) of their captions.
        config: how.
        seed: of times and noise.
        progress: called with (steps done, num_steps); raise from it to stop.

    Returns:
        (B, T, C)

    Raises:
        LayoutError: the base model is not the checkpoint's.
    """
    generator = torch.Generator().manual_seed(seed)
    refined = latents.detach().clone().requires_grad_(True)  # (B, T, C)
    optimiser = torch.optim.Adam([refined])
    photos = image_latents.shape[1]
    for step in range(config.num_steps):
        turn = (step * config.noises + torch.arange(config.noises)) % photos  # (K,)
        with torch.enable_grad():
            losses = picture_losses(
                base,
                networks.layout,
                networks.decode_latents(refined),
                shared_down,
                image_latents[:, turn].flatten(0, 1),  # (B*K, Cl, h, w)
                prompt_embeds[:, turn].flatten(0, 1),  # (B*K, L, W)
                generator,
                config.precision,
            )  # (B,)
            # the sum: Adam works number by number, so that everybody is refined as if alone
            (refined.grad,) = torch.autograd.grad(losses.sum(), [refined])
        optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.num_steps)
        optimiser.step()
        if progress is not None:
            progress(step + 1, config.num_steps)
    return refined.detach()


def refine(
    model: DiffLoRA,
    base: BaseModel,
    latent: LoraLatent,
    photos: Photo | Sequence[Photo],
    captions: Sequence[str] = (CAPTION,),
    config: RefinementConfig = RefinementConfig(),
    seed: int = 0,
    progress: Progress | None = None,
) -> LoraLatent:
    """Refine the latent of one person; `DiffLoRA.decode` makes the LoRA of it.

    Args:
        model: whose latent it is.
        base: its checkpoint's base model.
        latent: from `DiffLoRA.generate_latent`.
        photos: the reference photos; the centre square of each is used.
        captions: one for all photos, or one for each: what is in the photo besides the person (clothes,
            expression, background, light), in the words that prompts use. What a caption leaves out, the LoRA
            learns as if it belonged to the person.
        config: how.
        seed: of times and noise.
        progress: called with (steps done, num_steps); raise from it to stop.

    Returns:
        The latent; its settings say that it was refined.

    Raises:
        DiffLoRAError: captions do not fit the photos, or the latent is of another autoencoder.
        PhotoError: a photo is unusable.
        LayoutError: the base model is not the checkpoint's.
    """
    pictures = torch.stack(
        [centre_square(photo, base.picture_px) for photo in as_photos(photos)]
    )  # (N, 3, S, S)
    if len(captions) not in (1, len(pictures)):
        raise DiffLoRAError(
            f"{len(captions)} captions for {len(pictures)} photos: give one for all, or one for each"
        )
    if latent.autoencoder != model.autoencoder_fingerprint:
        raise DiffLoRAError(
            "this LoRA latent was made by another DiffLoRA checkpoint: load that one, or generate again"
        )
    texts = list(captions) if len(captions) > 1 else [captions[0]] * len(pictures)
    with torch.no_grad():
        image_latents, prompts = base.encode_images(pictures), base.encode_prompts(texts)
    networks = model.checkpoint.networks
    refined = refine_latents(
        networks,
        model.shared_down,
        base,
        latent.latent.to(networks.latent_mean)[None],  # (1, T, C)
        image_latents[None].to(networks.latent_mean),
        prompts[None].to(networks.latent_mean.device),
        config,
        seed,
        progress,
    )
    settings = {**latent.settings, "difflora.refined_steps": str(config.num_steps)}
    return replace(latent, latent=refined[0].cpu(), settings=settings)
