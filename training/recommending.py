"""Choose strength and starting noise on validation people, by the recogniser that also conditions.

The evaluation's own recogniser takes no part in it.

Letters: B people, K pictures of each, P parameters of one LoRA.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.candidates import embed_pictures
from difflora.checkpoint import Checkpoint, Recommended
from difflora.diffusion import draw_noise
from difflora.features import FaceAnalyzer
from difflora.picture_loss import picture_losses
from training.common import progress_bar, say
from training.photo_pool import PhotoPool, choose_photos
from training.presets import Drawing

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
NOISE_SCALES = (0.0, 1.0)
PICTURES = 2
LUCK = 0.01
"""By so much sampling has to be ahead of the mean prediction, which is the same whatever the seed."""


@torch.no_grad()
def recommend(
    checkpoint: Checkpoint,
    base: BaseModel,
    pool: PhotoPool,
    face_analyzer: FaceAnalyzer,
    drawing: Drawing = Drawing(),  # noqa: B008 (frozen)
) -> Recommended:
    """The settings whose pictures look most like the person, and that the base model's own loss forgives.

    A strength counts only if the LoRA still explains the person's real pictures better than the base model
    alone does: likeness at the price of everything else does not.

    Args:
        checkpoint: finished networks.
        base: draws.
        pool: validation people.
        face_analyzer: measures likeness.
        drawing: how the base model draws.

    Returns:
        The best settings.
    """
    networks, device = checkpoint.networks, checkpoint.networks.latent_mean.device
    generator = torch.Generator().manual_seed(0)
    references, mask, pictures = choose_photos(pool.valid, 1, PICTURES, generator)  # (B, 1), (B, 1), (B, K)
    rows = torch.arange(len(pool), device=device)  # (B,)
    condition = networks.condition(*pool.references(rows, references, mask))
    others = pool.valid & (
        torch.arange(pool.valid.shape[1], device=device) != references
    )  # (B, F), not the reference
    person = normalize((pool.face.float() * others[..., None]).sum(dim=1), dim=-1)  # (B, 512)
    image_latents, prompts = pool.pictures(rows, pictures)  # (B*K, Cl, h, w), (B*K, L, W)
    noise = draw_noise(tuple(image_latents.shape), generator, device)  # (B*K, Cl, h, w)
    latent_noise = draw_noise((len(pool), *networks.latent_mean.shape), generator, device)  # (B, T, C)

    def groups(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Tensors of B or B*K rows, a few people at a time."""
        sizes = [drawing.people_at_once * len(tensor) // len(pool) for tensor in tensors]
        return zip(*(x.split(size) for x, size in zip(tensors, sizes, strict=True)), strict=True)

    def loss_of(flat: Tensor, strength: float) -> float:
        fixed = torch.Generator().manual_seed(1)
        losses = [
            picture_losses(
                base, networks.layout, own, checkpoint.shared_down, *pictures, fixed, strength=strength
            )
            for own, *pictures in groups(flat, image_latents, prompts)
        ]
        return float(torch.cat(losses).mean())

    def similarity_of(flat: Tensor, strength: float) -> tuple[float, float]:
        """Mean likeness (no face counts 0), and the share of pictures with a face."""
        faces = []
        for own, told, start in groups(flat, prompts, noise):
            with batched_lora(base.denoiser, networks.layout, own, checkpoint.shared_down, strength):
                drawn = base.sample(told, start, drawing.num_steps, drawing.guidance_scale)
            faces.append(embed_pictures(face_analyzer, base.decode(drawn)))  # (b*K, 512)
        face = torch.cat(faces)  # (B*K, 512)
        likeness = (face * person.cpu().repeat_interleave(PICTURES, dim=0)).sum(dim=-1)  # (B*K,)
        return float(likeness.mean()), float(face.any(dim=1).float().mean())

    plain = checkpoint.recommended
    best, best_score = plain, -1.0
    with progress_bar(len(NOISE_SCALES) * len(STRENGTHS), "choosing the strength") as bar:
        for noise_scale in NOISE_SCALES:
            latent = networks.sample(
                condition, latent_noise, plain.num_steps, plain.guidance_scale, noise_scale
            )
            flat = networks.decode_latents(latent)  # (B, P)
            base_loss = loss_of(flat, 0.0)
            for strength in STRENGTHS:
                mean, found = similarity_of(flat, strength)
                loss = loss_of(flat, strength)
                say(
                    f"noise {noise_scale:g} strength {strength:g}: similarity {mean:.3f}, faces {found:.2f}, "
                    f"picture loss {loss:.4f} (base {base_loss:.4f})"
                )
                score = mean - LUCK * bool(noise_scale)
                if score > best_score and loss <= base_loss:
                    best_score = score
                    best = Recommended(strength, plain.num_steps, plain.guidance_scale, noise_scale)
                bar.update(1)
    return best
