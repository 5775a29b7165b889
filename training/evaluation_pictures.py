"""Draw and judge the pictures of evaluation, in this process or in several.

Letters: B people, K prompts, b people at once, E embedding width, M other photos of a person,
C width of image features, P parameters of one LoRA.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.candidates import Ranking, embed_pictures
from difflora.checkpoint import load_checkpoint
from difflora.diffusion import draw_noise
from difflora.faces import FaceAnalyzer
from difflora.features import IdentityFeatures, ImageEncoder
from difflora.files import load_safetensors
from difflora.layout import LoraLayout, SharedDown
from difflora.model import DiffLoRA
from difflora.photos import as_arrays, to_pixels
from difflora.synthetic import world
from difflora.synthetic.judge import Judge, mean_embeddings
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import sample_scenes
from training.common import progress_bar
from training.evaluation_people import (
    NUM_PHOTOS,
    SPARE_PHOTOS,
    photos_of,
    prompt_scenes,
    reference_number,
)
from training.evaluation_scores import Measurement, candidate_spread, diversity

BASE_ROW, TRUE_ROW = "base_model", "true_renders"
PEOPLE_AT_ONCE = 8
TRUE_SEED = 900_000
"""Scenes' jitter of the true renders that mark the ceiling."""


@dataclass(frozen=True)
class Job:
    """One row at one strength, in a form that another process can take.

    Args:
        row: name of the method.
        split: whose people.
        strength: multiplier; 0 for rows without a LoRA.
        people: B.
        prompts: K.
        picture_steps: steps of the base model's sampler.
        picture_guidance: its classifier-free guidance.
        seed: of the noise, which all rows share.
        checkpoint: for the layout and the shared `lora_down`.
        base_model: pipeline folder.
        device: where the networks run.
        face_pack: of the checkpoint.
        weights: file with the row's flat weights; None without a LoRA.
        result: file for the measurement.
    """

    row: str
    split: str
    strength: float
    people: int
    prompts: int
    picture_steps: int
    picture_guidance: float
    seed: int
    checkpoint: Path
    base_model: Path
    device: str
    face_pack: Path
    weights: Path | None
    result: Path


class Likeness(Protocol):
    """What measures identity similarity; `Judge` is one."""

    def targets(self, traits: Tensor) -> Tensor:
        """People (B, traits) -> what they look like (B, E), unit rows."""

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1] -> embeddings (n, E): unit rows, or zero without a face."""


@dataclass(frozen=True)
class ConditioningLikeness:
    """Identity similarity by the recogniser that conditions.

    Settings are chosen with this one, on validation people: the evaluation recogniser selects nothing.
    """

    face_analyzer: FaceAnalyzer

    def targets(self, traits: Tensor) -> Tensor:
        """See `Likeness`."""
        return mean_embeddings(traits, self.embed)  # (B, 512)

    def embed(self, pictures: Tensor) -> Tensor:
        """See `Likeness`; a picture in which no face is found is like nobody."""
        return embed_pictures(self.face_analyzer, pictures)  # (n, 512)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the pictures of B people are compared with.

    Args:
        likeness: embeds.
        person: (B, E) normalised mean of many true renders.
        reference: (B, E) the photo that DiffLoRA sees when it sees one.
        others: (B, M, E) other photos of the person, which it does not see then.
    """

    likeness: Likeness
    person: Tensor
    reference: Tensor
    others: Tensor

    @classmethod
    def of(cls, likeness: Likeness, face_analyzer: FaceAnalyzer, job: Job, size: int) -> Comparison:
        """Embed renders and photos of the people of a job, photos at the size of the pictures."""
        reference, others = [], []
        for index in range(job.people):
            photos = likeness.embed(
                photos_of(job.split, index, NUM_PHOTOS + SPARE_PHOTOS, size)
            )  # (M + 1, E)
            shown = reference_number(face_analyzer, job.split, index)
            reference.append(photos[shown])
            others.append(torch.cat([photos[:shown], photos[shown + 1 :]]))
        person = likeness.targets(sample_people(job.split, 0, job.people))  # (B, E)
        return cls(likeness, person, torch.stack(reference), torch.stack(others))

    def similarities(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (B, K, 3, H, W) -> cosine with person, reference and other photos, (B, K) each."""
        embedding = self.likeness.embed(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # (B, K, E)
        each = torch.einsum("bke,bme->bkm", embedding, self.others)  # (B, K, M)
        return {
            "similarity": (embedding * self.person[:, None]).sum(dim=-1),
            "reference_similarity": (embedding * self.reference[:, None]).sum(dim=-1),
            "r_similarity": each.mean(dim=-1),
        }


@dataclass(frozen=True, eq=False)
class Studio:
    """What a process needs to draw and judge; loaded once."""

    base: BaseModel
    judge: Judge
    image_encoder: ImageEncoder
    compared: Mapping[str, Comparison]  # split -> with what

    @classmethod
    def open(cls, jobs: Sequence[Job]) -> Studio:
        """Load what these jobs need."""
        judge, base = Judge.load(), BaseModel.load(jobs[0].base_model, jobs[0].device)
        compared: dict[str, Comparison] = {}
        for job in jobs:
            if job.split not in compared:
                face_analyzer = FaceAnalyzer(job.face_pack)
                likeness = ConditioningLikeness(face_analyzer) if job.split == "validation" else judge
                compared[job.split] = Comparison.of(likeness, face_analyzer, job, base.picture_px)
        return cls(base, judge, ImageEncoder(world.IMAGE_ENCODER), compared)

    def measure(self, job: Job) -> None:
        """Draw the pictures of a job, judge them, write the result."""
        scenes = prompt_scenes(job.split, job.prompts)
        true = job.row == TRUE_ROW
        pictures = true_pictures(job) if true else self.draw(job, scenes.prompts())  # (B, K, 3, H, W)
        shown = torch.stack([own[index % job.prompts] for index, own in enumerate(pictures)])  # (B, 3, H, W)
        features = self.image_encoder.encode(as_arrays(pictures.flatten(0, 1)))  # (B*K, C)
        Measurement(
            **self.compared[job.split].similarities(pictures),
            diversity=diversity(features.unflatten(0, pictures.shape[:2])),
            accuracy=self.judge.prompt_accuracy(pictures, scenes),
            samples=to_pixels(shown),
        ).save(job.result)

    def draw(self, job: Job, prompts: list[str]) -> Tensor:
        """Pictures of everybody for K prompts, from the noise that all rows share: (B, K, 3, H, W)."""
        generator = torch.Generator().manual_seed(job.seed)
        shape = (job.people, job.prompts, *self.base.latent_shape)
        noise = draw_noise(shape, generator, self.base.device)  # (B, K, C, h, w)
        loras = None
        if job.weights is not None:
            flat = load_safetensors(job.weights, job.device)[0]["flat"]  # (B, P)
            checkpoint = load_checkpoint(job.checkpoint, job.device)
            loras = LoraBatch(checkpoint.layout, checkpoint.shared_down, flat, job.strength)
        embeds = self.base.encode_prompts(prompts)  # (K, L, W)
        return draw_people(self.base, embeds, noise, job.picture_steps, loras, job.picture_guidance)


@dataclass(frozen=True, eq=False)
class LoraBatch:
    """LoRAs of B people: layout, module -> lora_down, flat weights (B, P), strength."""

    layout: LoraLayout
    shared_down: SharedDown | None
    flat: Tensor
    strength: float


@torch.no_grad()
def draw_people(
    base: BaseModel,
    prompt_embeds: Tensor,
    noise: Tensor,
    num_steps: int,
    loras: LoraBatch | None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Draw B people for K prompts, some people at a time.

    Args:
        base: the base model.
        prompt_embeds: (K, T, W).
        noise: (B, K, C, h, w).
        num_steps: of the base model's sampler.
        loras: of the B people, or None for the base model itself.
        guidance_scale: of the base model's sampler; 1 is none.

    Returns:
        (B, K, 3, H, W) in [-1, 1], on the CPU.
    """
    pictures = []
    for start in range(0, len(noise), PEOPLE_AT_ONCE):
        rows = noise[start : start + PEOPLE_AT_ONCE]  # (b, K, C, h, w)
        lora: AbstractContextManager[None] = nullcontext()
        if loras is not None:
            flat = loras.flat[start : start + PEOPLE_AT_ONCE]  # (b, P)
            lora = batched_lora(base.denoiser, loras.layout, flat, loras.shared_down, loras.strength)
        prompts = prompt_embeds.repeat(len(rows), 1, 1)  # (b*K, T, W)
        with lora:
            latents = base.sample(prompts, rows.flatten(0, 1), num_steps, guidance_scale)  # (b*K, C, h, w)
        pictures.append(base.decode(latents).cpu().unflatten(0, rows.shape[:2]))  # (b, K, 3, H, W)
    return torch.cat(pictures)


def true_pictures(job: Job) -> Tensor:
    """Renders of the true people in the prompts' scenes: (B, K, 3, H, W) in [-1, 1]."""
    traits = sample_people(job.split, 0, job.people)  # (B, traits)
    prompts = prompt_scenes(job.split, job.prompts)
    pictures = []
    for index, person in enumerate(traits):
        scenes = replace(prompts, jitter=sample_scenes(job.prompts, TRUE_SEED + index).jitter)
        pictures.append(
            render(person.expand(job.prompts, -1), scenes, PHOTO_PX).pictures * 2 - 1
        )  # (K, 3, H, W)
    return torch.stack(pictures)


def spread_of_candidates(
    model: DiffLoRA, people: Sequence[IdentityFeatures], ranking: Ranking, judge: Judge
) -> dict[str, dict[str, float]]:
    """How alike the candidates of best-of-n are, as latents and as faces; see `candidate_spread`.

    Args:
        model: that sampled them.
        people: features of the B people.
        ranking: their n candidates, K pictures of each.
        judge: whose recogniser compares the faces.
    """
    latents = torch.stack(
        [model.sample_latents(people, seed, noise_scale=ranking.noise_scale) for seed in ranking.seeds], dim=1
    )  # (B, n, T, C)
    pictures = ranking.pictures.float() / 127.5 - 1  # (B, n, K, 3, H, W)
    faces = torch.stack([judge.embed(own.flatten(0, 1)) for own in pictures])  # (B, n*K, E)
    return candidate_spread(latents.flatten(2).cpu(), faces.unflatten(1, pictures.shape[1:3]))


def measure_all(jobs: Sequence[Job]) -> None:
    """All jobs in this process; the entry point of workers."""
    torch.set_num_threads(1)
    studio = Studio.open(jobs)
    for job in jobs:
        studio.measure(job)


def run_jobs(jobs: Sequence[Job], workers: int, description: str) -> None:
    """Do the jobs that have no result yet, in this process or in several."""
    missing = [job for job in jobs if not job.result.is_file()]
    with progress_bar(len(jobs), description, len(jobs) - len(missing)) as bar:
        if workers <= 1 and missing:
            studio = Studio.open(missing)
            for job in missing:
                studio.measure(job)
                bar.update(1)
        elif missing:
            # a few jobs per call: loading the models costs seconds, and a kill loses little
            size = min(6, math.ceil(len(missing) / workers))
            parts = [missing[start : start + size] for start in range(0, len(missing), size)]
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                calls = {pool.submit(measure_all, part): len(part) for part in parts}
                for call in as_completed(calls):
                    call.result()
                    bar.update(calls[call])
