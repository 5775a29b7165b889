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

Letters: B people of a group, m choices of photos, Z numbers of a latent, P parameters of one LoRA.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.errors import DiffLoRAError
from difflora.model import DiffLoRA
from training.common import digest_of, say
from training.correction import Correction
from training.evaluation_people import face_models
from training.groups import Group, Inputs, Read, group_options, group_step, train_on_groups
from training.presets import apply_options
from training.settings import CorrectionTrainingConfig
from training.steps import Step


def open_latents(model: DiffLoRA) -> Read:
    """Function that predicts latents (m, Z) from the features of m choices of photos."""
    return lambda features: (model.sample_latents(features).flatten(1),)


def correction_step(
    base: BaseModel,
    model: DiffLoRA,
    groups: Sequence[Group],
    correction: Correction,
    config: CorrectionTrainingConfig,
) -> Step:
    """What makes the loss of a step: predictions of the checkpoint and what is added to them."""
    networks = model.checkpoint.networks

    def corrected(inputs: Inputs, _generator: torch.Generator) -> Tensor:
        (latents,) = inputs  # (B, Z)
        with torch.no_grad():
            predicted = networks.decode_latents(latents.unflatten(1, networks.latent_mean.shape))  # (B, P)
        return predicted + correction(latents)  # (B, P)

    return group_step(base, model.layout, model.shared_down, groups, config.pictures_per_step, corrected)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_correction", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--start", type=Path, required=True, help="DiffLoRA checkpoint")
    group_options(parser, CorrectionTrainingConfig, "runs/correction")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, train, save."""
    options = read_options(arguments)
    config = apply_options(CorrectionTrainingConfig(), options)
    base = BaseModel.load(options.base, options.device)
    model = DiffLoRA.load(options.start, options.face_pack, options.image_encoder, options.device)
    numbers = model.checkpoint.networks.latent_mean.numel()
    correction = Correction(numbers, model.layout.num_parameters).to(options.device)
    train_on_groups(
        options,
        config,
        base,
        face_models(model),
        open_latents(model),
        correction,
        lambda groups: correction_step(base, model, groups, correction, config),
    )
    path = correction.save(options.out / "correction.safetensors", digest_of(options.start))
    say(f"correction saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
