"""Train what all LoRAs of a checkpoint have in common: `python -m training.train_mean --start CHECKPOINT`.

LoRAs trained on colour photos draw colour photos, whatever style the prompt asks for. That is nobody's own
but in all LoRAs alike, so one change of the mean LoRA mends it. Many people's pictures train that change
together, on top of what the checkpoint predicts for each; the checkpoint is written with the changed mean,
and nothing else in it is touched. [ours]
Resumable: started again with the same settings, it goes on where it stopped.

Letters: B people of a group, n pictures of each, K of them in a step, (C, h, w) image latents, P parameters.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from difflora.errors import DiffLoRAError
from difflora.lora_training import Objective, denoising_objective, draw_batch
from difflora.model import DiffLoRA
from difflora.synthetic import world
from difflora.synthetic.renderer import PHOTO_PX
from training.common import digest_of, plot_metrics, progress_bar, say
from training.make_loras import open_likeness, predicted_loras, training_pictures
from training.pictures import People, PhotoFolders, RenderedPeople
from training.presets import apply_options, config_options
from training.settings import MeanTrainingConfig
from training.steps import Step, StepsConfig, run_steps


@dataclass(frozen=True, eq=False)
class Group:
    """People of one step.

    Args:
        image_latents: (B, n, C, h, w).
        prompt_embeds: (n, T, W), or (B, n, T, W).
        predicted: (B, P) LoRAs that the checkpoint makes of them.
        objective: what is made small.
    """

    image_latents: Tensor
    prompt_embeds: Tensor
    predicted: Tensor
    objective: Objective


@dataclass(frozen=True, kw_only=True)
class MeanRun(StepsConfig):
    """A run folder's config: only the same run is gone on with."""

    training: MeanTrainingConfig
    people: dict[str, Any]
    base: str
    start: str


class MeanChange(nn.Module):
    """What is added to everybody's LoRA."""

    def __init__(self, num_parameters: int) -> None:
        """Start with no change."""
        super().__init__()
        self.change = nn.Parameter(torch.zeros(num_parameters))  # (P,)


def open_groups(
    base: BaseModel,
    model: DiffLoRA,
    people: People,
    config: MeanTrainingConfig,
    likeness: Callable[[Tensor], Objective] | None = None,
) -> list[Group]:
    """Draw or read everybody's pictures, and predict their LoRAs.

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
                people = dataclasses.replace(people, seed=config.seed * 1_000_003 + number)
            pictures, image_latents, prompts = training_pictures(base, people, indices)
            predicted = predicted_loras(model, people, indices, max(PHOTO_PX, base.picture_px))  # (B, P)
            objective = denoising_objective if likeness is None else likeness(pictures)
            groups.append(Group(image_latents, prompts, predicted.to(image_latents.device), objective))
            bar.update(len(indices))
    return groups


def mean_step(
    base: BaseModel,
    model: DiffLoRA,
    groups: Sequence[Group],
    mean: MeanChange,
    config: MeanTrainingConfig,
) -> Step:
    """What makes the loss of a step: one group, K of its pictures."""

    def step(generator: torch.Generator, _progress: float) -> Tensor:
        group = groups[int(torch.randint(len(groups), (), generator=generator))]
        latents, prompts = group.image_latents, group.prompt_embeds
        chosen = torch.randperm(latents.shape[1], generator=generator)[: config.pictures_per_step]  # (K,)
        batch = draw_batch(base, latents, prompts, chosen, generator)
        flat = group.predicted + mean.change  # (B, P)
        with batched_lora(base.denoiser, model.layout, flat, model.shared_down):
            return group.objective(base, batch).float().mean()

    return step


def with_mean(checkpoint: Checkpoint, change: Tensor) -> Checkpoint:
    """The checkpoint whose every LoRA is larger by the change (P,); its networks are changed in place."""
    checkpoint.networks.weight_mean.add_(change.detach().to(checkpoint.networks.weight_mean))
    return checkpoint


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line; the defaults are the embedded world's own files."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_mean", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--start", type=Path, required=True, help="DiffLoRA checkpoint")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mean"), help="run folder, resumed if it exists"
    )
    parser.add_argument("--photos", type=Path, help="one folder of photos per person, not rendered people")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--float16", action="store_true", help="half of the file's size")
    config_options(parser, MeanTrainingConfig)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, prepare the people, train, save, plot."""
    options = read_options(arguments)
    config = apply_options(MeanTrainingConfig(), options)
    people: People = RenderedPeople("train", config.pictures, config.seed, config.styled)
    if options.photos is not None:
        people = PhotoFolders(options.photos, config.pictures)
    base = BaseModel.load(options.base, options.device)
    model = DiffLoRA.load(options.start, options.face_pack, options.image_encoder, options.device)
    settings = MeanRun(
        config.num_steps,
        config.group,
        config.learning_rate,
        config.seed,
        training=config,
        people=people.description(),
        base=base.fingerprint,
        start=digest_of(options.start),
    )
    groups = open_groups(base, model, people, config, open_likeness(options, config.identity_weight))
    mean = MeanChange(model.layout.num_parameters).to(options.device)
    run_steps(options.out, mean, mean_step(base, model, groups, mean, config), settings)
    checkpoint = with_mean(load_checkpoint(options.start), mean.change)
    dtype = torch.float16 if options.float16 else torch.float32
    path = save_checkpoint(options.out / "difflora.safetensors", checkpoint, dtype)
    plot_metrics(options.out / "metrics.jsonl", options.out / "loss.png")
    say(f"checkpoint saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
