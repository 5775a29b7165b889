"""Groups of people who train something together that serves everybody: a correction, a regressor.

Letters: B people of a group, n pictures of each, K of them in a step, (C, h, w) image latents, (T, W) prompt
embeddings, V choices of photos, P parameters of one LoRA.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.features import FaceAnalyzer, IdentityFeatures, ImageEncoder
from difflora.layout import LoraLayout, SharedDown
from difflora.lora_training import Objective, denoising_objective, draw_batch
from difflora.synthetic import world
from difflora.synthetic.renderer import PHOTO_PX
from training.common import config_to_dict, digest_of, open_run, plot_metrics, progress_bar
from training.evaluation_people import NUM_PHOTOS
from training.make_loras import first_features, open_likeness, portrait_option, training_pictures
from training.pictures import People, PhotoFolders, RenderedPeople
from training.presets import config_options
from training.settings import GroupTrainingConfig
from training.steps import Step, StepsConfig, run_steps

Inputs = tuple[Tensor, ...]
"""What LoRAs are made from: each (B, V, ...), or (B, ...) when a choice is made."""


Read = Callable[[list[IdentityFeatures]], Inputs]
"""Features of m choices of photos -> inputs (m, ...)."""


@dataclass(frozen=True, kw_only=True)
class GroupRun(StepsConfig):
    """A run folder's config: only the same run is gone on with."""

    training: GroupTrainingConfig
    people: dict[str, Any]
    base: str
    start: str
    likeness: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Group:
    """People of one step.

    Args:
        image_latents: (B, n, C, h, w).
        prompt_embeds: (n, T, W), or (B, n, T, W).
        inputs: of each of V choices of photos.
        objective: what is made small.
    """

    image_latents: Tensor
    prompt_embeds: Tensor
    inputs: Inputs
    objective: Objective


def choices_of(features: IdentityFeatures) -> list[IdentityFeatures]:
    """What a user may give: each of the first `NUM_PHOTOS` photos alone, or all of them; repeated if few."""
    photos = [number % len(features) for number in range(NUM_PHOTOS)]
    single = [
        replace(
            features,
            face_embedding=features.face_embedding[n : n + 1],  # (1, 512)
            image_features=features.image_features[n : n + 1],  # (1, C)
        )
        for n in photos
    ]
    return [*single, features]


def open_groups(
    base: BaseModel,
    encoders: tuple[FaceAnalyzer, ImageEncoder],
    people: People,
    config: GroupTrainingConfig,
    read: Read,
    likeness: Callable[[Tensor], Objective] | None = None,
) -> list[Group]:
    """Draw or read everybody's pictures, and what photos of them show.

    Args:
        base: frozen base model.
        encoders: read the photos.
        people: their pictures; groups of rendered ones have scenes of their own.
        config: how many.
        read: of B * V choices of photos.
        likeness: pictures (B, n, 3, S, S) -> what is trained for; None is the base model's loss alone.
    """
    count = min(config.people, len(people)) if isinstance(people, PhotoFolders) else config.people
    groups = []
    with progress_bar(count, "people") as bar:
        for number, chosen in enumerate(torch.arange(count).split(config.group)):
            indices = chosen.tolist()
            if isinstance(people, RenderedPeople):
                people = replace(people, seed=config.seed * 1_000_003 + number)
            pictures, image_latents, prompts = training_pictures(base, people, indices)
            features = first_features(encoders, people, indices, max(PHOTO_PX, base.picture_px))
            choices = [choice for own in features for choice in choices_of(own)]
            inputs = tuple(
                each.unflatten(0, (len(indices), -1)).to(image_latents.device) for each in read(choices)
            )  # (B, V, ...)
            objective = denoising_objective if likeness is None else likeness(pictures)
            groups.append(Group(image_latents, prompts, inputs, objective))
            bar.update(len(indices))
    return groups


def group_step(
    base: BaseModel,
    layout: LoraLayout,
    shared_down: SharedDown,
    groups: Sequence[Group],
    pictures_per_step: int,
    loras: Callable[[Inputs, torch.Generator], Tensor],
) -> Step:
    """What makes the loss of a step: one group, K of its pictures, a choice of photos for each person.

    Args:
        base: frozen base model.
        layout: of the LoRAs.
        shared_down: module -> lora_down.
        groups: see `open_groups`.
        pictures_per_step: K.
        loras: inputs (B, ...) of the photos chosen, and the step's chance -> (B, P); what is trained.
    """

    def step(generator: torch.Generator, _progress: float) -> Tensor:
        group = groups[int(torch.randint(len(groups), (), generator=generator))]
        image_latents, prompts = group.image_latents, group.prompt_embeds
        pictures = torch.randperm(image_latents.shape[1], generator=generator)[:pictures_per_step]
        batch = draw_batch(base, image_latents, prompts, pictures, generator)
        people, choices = group.inputs[0].shape[:2]
        shown = torch.randint(choices, (people,), generator=generator)  # (B,)
        flat = loras(tuple(each[torch.arange(people), shown] for each in group.inputs), generator)  # (B, P)
        with batched_lora(base.denoiser, layout, flat, shared_down):
            return group.objective(base, batch).float().mean()

    return step


def group_options(parser: argparse.ArgumentParser, kind: type[GroupTrainingConfig], out: str) -> None:
    """What every such script asks for; the defaults are the embedded world's own files.

    Args:
        parser: gets the options.
        kind: of the settings.
        out: default run folder.
    """
    parser.add_argument("--out", type=Path, default=Path(out), help="run folder, resumed if it exists")
    parser.add_argument("--photos", type=Path, help="one folder of photos per person, not rendered people")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    portrait_option(parser)
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    config_options(parser, kind)


def train_on_groups(
    options: argparse.Namespace,
    config: GroupTrainingConfig,
    base: BaseModel,
    encoders: tuple[FaceAnalyzer, ImageEncoder],
    read: Read,
    module: nn.Module,
    step_of: Callable[[Sequence[Group]], Step],
) -> None:
    """Prepare the people, train, plot.

    Args:
        options: see `group_options`; and `start`, the file that training starts from.
        config: how.
        base: frozen base model.
        encoders: read the photos.
        read: what LoRAs are made from.
        module: trained in place.
        step_of: groups -> what makes the loss of a step, see `group_step`.

    Raises:
        CheckpointError: the run folder belongs to a run with other settings.
    """
    people: People = RenderedPeople("train", config.pictures, config.seed, config.styled)
    if options.photos is not None:
        people = PhotoFolders(options.photos, config.pictures)
    likeness, sought = open_likeness(options, config.identity_weight, config.portrait_weight)
    settings = GroupRun(
        config.num_steps,
        config.group,
        config.learning_rate,
        config.seed,
        training=config,
        people=people.description(),
        base=base.fingerprint,
        start=digest_of(options.start),
        likeness=sought,
    )
    open_run(options.out, config_to_dict(settings))  # before everybody is drawn: other settings end it here
    groups = open_groups(base, encoders, people, config, read, likeness)
    run_steps(options.out, module, step_of(groups), settings)
    plot_metrics(options.out / "metrics.jsonl", options.out / "loss.png")
