"""Draw several LoRAs of a person and keep the one whose pictures look most like the photos.

A sampler can be asked again, a regressor cannot. The recogniser that conditions also ranks, so that likeness
has to be measured by another one.

Letters: B people, n candidates of each, K pictures of each candidate, P parameters of one LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base_model import BaseModel
from .batched import batched_lora
from .diffusion import Progress, draw_noise
from .errors import DiffLoRAError, FaceModelError
from .faces import FaceAnalyzer
from .features import IdentityFeatures
from .likeness import face_embeddings
from .model import DiffLoRA
from .photos import as_arrays, to_pixels

NUM_CANDIDATES = 8
CANDIDATE_NOISE = 0.3  # of the sampler: with more the best of eight is less like validation people
PROMPT = "a photo of a person"
NUM_PICTURES = 4
PICTURE_STEPS = 8

Draw = Callable[[Tensor, Progress], Tensor]
"""Candidates of one person, flat weights (n, P) -> pictures (n, K, 3, H, W) in [-1, 1], the same K noises and
prompt for each candidate; calls progress(candidates drawn, n)."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates and how much their pictures look like the photos.

    Args:
        seeds: n seeds of the sampler; `DiffLoRA.generate` with one of them and the same `noise_scale` gives
            that candidate again.
        noise_scale: that they were sampled with.
        flat_weights: (B, n, P).
        similarity: (B, n), mean cosine between the person's photos and K pictures of the candidate.
        pictures: (B, n, K, 3, H, W) uint8, what was compared.
    """

    seeds: tuple[int, ...]
    noise_scale: float
    flat_weights: Tensor
    similarity: Tensor
    pictures: Tensor

    @property
    def best(self) -> Tensor:
        """(B,) index of each person's best candidate."""
        return self.similarity.argmax(dim=1)

    @property
    def best_weights(self) -> Tensor:
        """(B, P) flat weights of the best candidates."""
        return self.flat_weights[torch.arange(len(self.best)), self.best]


def batched_draw(model: DiffLoRA, base: BaseModel, seed: int = 0, prompt: str = PROMPT) -> Draw:
    """Draws all candidates in one batch with a base model of our own.

    Args:
        model: whose LoRAs they are; its recommended strength is used.
        base: the base model of its checkpoint.
        seed: of the pictures' noise, which all candidates of everybody share.
        prompt: what is drawn, `NUM_PICTURES` times.

    Returns:
        A function; it raises LayoutError if the base model is not the checkpoint's.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = draw_noise((NUM_PICTURES, *base.latent_shape), generator, base.device)  # (K, C, h, w)

    @torch.no_grad()
    def draw(flat_weights: Tensor, progress: Progress) -> Tensor:
        count = len(flat_weights)
        repeated = noise.repeat(count, 1, 1, 1)  # (n*K, C, h, w)
        prompts = base.encode_prompts([prompt]).expand(len(repeated), -1, -1)  # (n*K, L, W)
        weights = flat_weights.to(base.device)  # (n, P)
        with batched_lora(
            base.denoiser, model.layout, weights, model.shared_down, model.recommended.strength
        ):
            pictures = base.decode(base.sample(prompts, repeated, PICTURE_STEPS))  # (n*K, 3, H, W)
        progress(count, count)
        return pictures.unflatten(0, (count, NUM_PICTURES))  # (n, K, 3, H, W)

    return draw


@dataclass(frozen=True)
class _Parts:
    """One progress bar for several stages of n candidates each."""

    progress: Progress | None
    num_candidates: int
    stages: int

    def __call__(self, stage: int) -> Progress:
        """What a stage, from 0, reports to: in any unit of its own."""

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                within = done * self.num_candidates // total
                self.progress(stage * self.num_candidates + within, self.stages * self.num_candidates)

        return report


@torch.no_grad()
def rank_candidates(
    model: DiffLoRA,
    draw: Draw,
    people: Sequence[IdentityFeatures],
    num_candidates: int = NUM_CANDIDATES,
    seed: int = 0,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    noise_scale: float = CANDIDATE_NOISE,
    progress: Progress | None = None,
) -> Ranking:
    """Sample LoRAs with seeds seed .. seed + n - 1, draw with each, compare with the photos.

    Args:
        model: with face models.
        draw: draws with the candidates: `batched_draw`, or a host's own sampler.
        people: features of B people.
        num_candidates: n >= 1.
        seed: the first one.
        num_steps: of the LoRA's sampler, as in `DiffLoRA.generate`.
        guidance_scale: likewise.
        noise_scale: likewise; at 0 all candidates would be the same.
        progress: called with (parts done, parts) while candidates are sampled, drawn and compared; raise from
            it to stop.

    Returns:
        The candidates, on the CPU, in the order of their seeds.

    Raises:
        DiffLoRAError: fewer than one candidate, or noise_scale 0.
        FaceModelError: the model was loaded without face models.
    """
    if num_candidates < 1 or noise_scale == 0.0:
        raise DiffLoRAError(
            f"{num_candidates} candidates at noise scale {noise_scale:g}: ranking needs at least one, and a "
            "noise scale above 0, else all are the same"
        )
    if model.face_analyzer is None:
        raise FaceModelError("ranking compares faces: load the model with face_pack= and image_encoder=")
    seeds = tuple((seed + index) % 2**64 for index in range(num_candidates))  # torch takes 64 bits
    part = _Parts(progress, num_candidates, 1 + 2 * len(people))
    sampled = []
    for index, number in enumerate(seeds):
        sampled.append(model.generate_weights(people, number, num_steps, guidance_scale, noise_scale))
        part(0)(index + 1, num_candidates)
    flat = torch.stack(sampled, dim=1)  # (B, n, P)
    similarity = torch.zeros(len(people), num_candidates)
    pictures = []
    for index, features in enumerate(people):
        drawn = draw(flat[index], part(1 + 2 * index))  # (n, K, 3, H, W)
        arrays = as_arrays(drawn.flatten(0, 1))  # n*K of (H, W, 3)
        compared = part(2 + 2 * index) if progress is not None else None
        embedding, _ = face_embeddings(model.face_analyzer, arrays, compared)  # (n*K, 512)
        cosine = embedding @ features.mean_face.cpu()  # (n*K,)
        similarity[index] = cosine.view(num_candidates, -1).mean(dim=1)
        pictures.append(to_pixels(drawn).cpu())
    return Ranking(seeds, noise_scale, flat.cpu(), similarity, torch.stack(pictures))


def embed_pictures(face_analyzer: FaceAnalyzer, pictures: Tensor) -> Tensor:
    """Face embeddings of drawn pictures.

    Args:
        face_analyzer: finds and embeds the largest face of each.
        pictures: (n, 3, H, W) in [-1, 1].

    Returns:
        (n, 512) unit rows on the CPU, zero where no face is found.
    """
    return face_embeddings(face_analyzer, as_arrays(pictures))[0]
