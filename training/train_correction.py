"""Train what all predictions of a checkpoint lack: `python -m training.train_correction --start CHECKPOINT`.

A linear map from a person's latent to an addition to that person's LoRA, and a mean for everybody: the
pictures of many people train the two together, on top of what the checkpoint predicts for each. Training
single LoRAs on from the predictions (`make_loras --start`) and regressing on what that adds finds such a
correction too, with the luck of every training in it; this finds what serves all. [ours]
Likeness is asked of whole pictures as well: trained for faces alone, a map that everybody shares only learns
what pleases the recogniser of faces.
`amortise --checkpoint CHECKPOINT --correction runs/correction/correction.safetensors` makes the library of
corrected predictions, from which LAE and DiT learn anew. Resumable: started again with the same settings, it
goes on where it stopped.

Letters: B people of a group, n pictures of each, K of them in a step, (C, h, w) image latents, V choices of
photos, Z numbers of a latent, P parameters of one LoRA.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.errors import DiffLoRAError
from difflora.features import IdentityFeatures
from difflora.lora_training import Objective, denoising_objective, draw_batch
from difflora.model import DiffLoRA
from difflora.synthetic import world
from difflora.synthetic.renderer import PHOTO_PX
from training.common import config_to_dict, digest_of, open_run, plot_metrics, progress_bar, say
from training.correction import Correction
from training.evaluation_people import NUM_PHOTOS
from training.make_loras import first_features, open_likeness, portrait_option, training_pictures
from training.pictures import People, PhotoFolders, RenderedPeople
from training.presets import apply_options, config_options
from training.settings import CorrectionTrainingConfig
from training.steps import Step, StepsConfig, run_steps


@dataclass(frozen=True, eq=False)
class Group:
    """People of one step.

    Args:
        image_latents: (B, n, C, h, w).
        prompt_embeds: (n, T, W), or (B, n, T, W).
        latents: (B, V, Z) what the checkpoint predicts from each of V choices of photos.
        objective: what is made small.
    """

    image_latents: Tensor
    prompt_embeds: Tensor
    latents: Tensor
    objective: Objective


@dataclass(frozen=True, kw_only=True)
class CorrectionRun(StepsConfig):
    """A run folder's config: only the same run is gone on with."""

    training: CorrectionTrainingConfig
    people: dict[str, Any]
    base: str
    start: str
    likeness: dict[str, Any]


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
    model: DiffLoRA,
    people: People,
    config: CorrectionTrainingConfig,
    likeness: Callable[[Tensor], Objective] | None = None,
) -> list[Group]:
    """Draw or read everybody's pictures, and predict their latents.

    Args:
        base: frozen base model.
        model: the checkpoint.
        people: their pictures; groups of rendered ones have scenes of their own.
        config: how many.
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
            features = first_features(model, people, indices, max(PHOTO_PX, base.picture_px))
            latents = model.sample_latents([choice for own in features for choice in choices_of(own)])
            by_person = latents.flatten(1).unflatten(0, (len(indices), -1))  # (B, V, Z)
            objective = denoising_objective if likeness is None else likeness(pictures)
            groups.append(Group(image_latents, prompts, by_person.to(image_latents.device), objective))
            bar.update(len(indices))
    return groups


def correction_step(
    base: BaseModel,
    model: DiffLoRA,
    groups: Sequence[Group],
    correction: Correction,
    config: CorrectionTrainingConfig,
) -> Step:
    """What makes the loss of a step: one group, K of its pictures, a choice of photos for each person."""
    networks = model.checkpoint.networks

    def step(generator: torch.Generator, _progress: float) -> Tensor:
        group = groups[int(torch.randint(len(groups), (), generator=generator))]
        image_latents, prompts = group.image_latents, group.prompt_embeds
        pictures = torch.randperm(image_latents.shape[1], generator=generator)[: config.pictures_per_step]
        batch = draw_batch(base, image_latents, prompts, pictures, generator)
        people, choices, _ = group.latents.shape
        shown = torch.randint(choices, (people,), generator=generator)  # (B,)
        latents = group.latents[torch.arange(people), shown]  # (B, Z)
        with torch.no_grad():
            predicted = networks.decode_latents(latents.unflatten(1, networks.latent_mean.shape))  # (B, P)
        flat = predicted + correction(latents)  # (B, P)
        with batched_lora(base.denoiser, model.layout, flat, model.shared_down):
            return group.objective(base, batch).float().mean()

    return step


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line; the defaults are the embedded world's own files."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_correction", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--start", type=Path, required=True, help="DiffLoRA checkpoint")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/correction"), help="run folder, resumed if it exists"
    )
    parser.add_argument("--photos", type=Path, help="one folder of photos per person, not rendered people")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    portrait_option(parser)
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    config_options(parser, CorrectionTrainingConfig)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, prepare the people, train, save, plot."""
    options = read_options(arguments)
    config = apply_options(CorrectionTrainingConfig(), options)
    people: People = RenderedPeople("train", config.pictures, config.seed, config.styled)
    if options.photos is not None:
        people = PhotoFolders(options.photos, config.pictures)
    base = BaseModel.load(options.base, options.device)
    model = DiffLoRA.load(options.start, options.face_pack, options.image_encoder, options.device)
    start = digest_of(options.start)
    likeness, sought = open_likeness(options, config.identity_weight, config.portrait_weight)
    settings = CorrectionRun(
        config.num_steps,
        config.group,
        config.learning_rate,
        config.seed,
        training=config,
        people=people.description(),
        base=base.fingerprint,
        start=start,
        likeness=sought,
    )
    open_run(options.out, config_to_dict(settings))  # before everybody is drawn: other settings end it here
    groups = open_groups(base, model, people, config, likeness)
    numbers = model.checkpoint.networks.latent_mean.numel()
    correction = Correction(numbers, model.layout.num_parameters).to(options.device)
    run_steps(options.out, correction, correction_step(base, model, groups, correction, config), settings)
    path = correction.save(options.out / "correction.safetensors", start)
    plot_metrics(options.out / "metrics.jsonl", options.out / "loss.png")
    say(f"correction saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
