"""Make a cleaner, larger library from a small one: `python -m training.amortise`.

LoRAs that were trained one by one hold the person and the luck of their training. A ridge regression from a
person's features averages the luck away, and predicts LoRAs for people who were never trained. LAE and DiT
then learn from those predictions as well: the linear start, from which the image loss goes on. [ours]
With `--regressor` the end-to-end regressor predicts instead, which already knows the image loss. With
`--checkpoint` DiffLoRA itself predicts, and is corrected by what training from its predictions adds to them
(`make_loras --start`): most of that is the luck of the pictures again, and the rest is common to all people
or goes with what the prediction says already. With `--correction` as well it is corrected as
`training.train_correction` has learned to, and nobody's trained LoRA is needed. With `--average` nothing is
predicted: libraries of the same people, corrected in several ways, become their mean, as half of what one
correction adds to a LoRA is its own luck.

Letters: n LoRAs of the small library, M people with photos, F photos of each, C feature width,
P parameters of one LoRA.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.autoencoder import explained_variance
from difflora.base_model import BaseModel
from difflora.checkpoint import Checkpoint, Recommended, load_checkpoint
from difflora.controls import RidgeRegression
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.files import save_safetensors
from difflora.hypernetwork import LoraHypernetwork
from difflora.normalisation import LoraNormalisation
from difflora.synthetic import world
from training.basis_regressor import open_regressor
from training.common import digest_of, open_run, read_config, say
from training.correction import Correction
from training.lora_library import SHARED_DOWN_NAME, Library, library_option, load_library
from training.photo_pool import PhotoPool, ScatteredPeople, build_pool
from training.presets import preset

REGULARISERS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARD_PEOPLE = 64
BASE_SETTINGS = ("base_model", "base_model_fingerprint", "layout")
"""What must be the same of libraries that are averaged."""


def person_features(pool: PhotoPool, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What all photos of a person say together: (M, 512 + C) and the deviation of the image features (C,)."""
    count = pool.valid.sum(dim=1, keepdim=True).clamp_min(1)  # (M, 1)
    face, image = (
        pool.face.float().sum(dim=1) / count,
        pool.image.float().sum(dim=1) / count,
    )  # (M, 512), (M, C)
    spread = image.std(dim=0).clamp_min(1e-6) if spread is None else spread  # (C,)
    return torch.cat([face, image / (spread * image.shape[1] ** 0.5)], dim=1), spread  # (M, 512 + C)


def fit(features: Tensor, targets: Tensor, held_out: int) -> tuple[RidgeRegression, float, float]:
    """Ridge regression with the regulariser that predicts the last LoRAs best, and its R2 on them."""
    scores = {}
    for regulariser in REGULARISERS:
        ridge = RidgeRegression.fit(features[:-held_out], targets[:-held_out], regulariser)
        scores[regulariser] = float(
            explained_variance(ridge.predict(features[-held_out:]), targets[-held_out:])
        )
    best = max(scores, key=lambda regulariser: scores[regulariser])
    return RidgeRegression.fit(features, targets, best), best, scores[best]


def predict_by_ridge(library: Library, pool: PhotoPool, gain: float) -> Callable[[Tensor], Tensor]:
    """Function that predicts LoRAs: rows of the pool (n,) -> (n, P).

    Args:
        library: trained LoRAs of the pool's first people.
        pool: photos of everybody.
        gain: on the deviation from the mean, which ridge regression shrinks.
    """
    normalisation = LoraNormalisation.fit(library.flat, library.layout)
    features, _ = person_features(pool)  # (M, 512 + C)
    targets = normalisation.normalise(library.flat)  # (n, P)
    ridge, regulariser, score = fit(features[library.people], targets, max(1, len(targets) // 10))
    say(f"ridge regression: regulariser {regulariser:g}, held-out R2 {score:.3f}")
    return lambda rows: normalisation.denormalise(gain * ridge.predict(features[rows]))


def predict_by_regressor(
    path: Path, library: Library, base: str, pool: PhotoPool
) -> Callable[[Tensor], Tensor]:
    """The same with the end-to-end regressor of `training.train_regressor`, from all photos of a person.

    Raises:
        CheckpointError: it was trained for another base model, or on another library's `lora_down`.
    """
    regressor = open_regressor(path, library, base, pool.image.shape[-1])

    def predict(rows: Tensor) -> Tensor:
        photos = torch.arange(pool.valid.shape[1]).expand(len(rows), -1)  # (n, F)
        with torch.no_grad():
            return regressor(*pool.references(rows, photos, pool.valid[rows]))  # (n, P)

    return predict


def predict_by_checkpoint(
    checkpoint: Checkpoint, library: Library, pool: PhotoPool
) -> Callable[[Tensor], Tensor]:
    """The same with DiffLoRA, from all photos of a person, corrected by what the library's people lack.

    Args:
        checkpoint: whose predictions the LoRAs of the library were trained from.
        library: of the pool's first people.
        pool: photos of everybody.
    """
    networks = checkpoint.networks
    known = latents_of(networks, pool, library.people)  # (n, T, C)
    with torch.no_grad():
        lacking = library.flat - networks.decode_latents(known)  # (n, P)
    correction, regulariser, score = fit(known.flatten(1), lacking, max(1, len(known) // 10))
    say(f"correction: regulariser {regulariser:g}, held-out R2 {score:.3f}")
    return predict_corrected(checkpoint, pool, correction.predict)


def predict_corrected(
    checkpoint: Checkpoint, pool: PhotoPool, correction: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """The same with what a correction adds: standardised latents (n, T C) -> (n, P)."""
    networks = checkpoint.networks

    @torch.no_grad()
    def predict(rows: Tensor) -> Tensor:
        latents = latents_of(networks, pool, rows)  # (n, T, C)
        return networks.decode_latents(latents) + correction(latents.flatten(1))  # (n, P)

    return predict


@torch.no_grad()
def latents_of(networks: LoraHypernetwork, pool: PhotoPool, rows: Tensor) -> Tensor:
    """What DiffLoRA expects from all photos of people (n,): (n, T, C)."""
    photos = torch.arange(pool.valid.shape[1]).expand(len(rows), -1)  # (n, F)
    condition = networks.condition(*pool.references(rows, photos, pool.valid[rows]))
    start = torch.zeros(len(rows), *networks.latent_mean.shape)  # (n, T, C)
    return networks.sample(condition, start, Recommended.num_steps, noise_scale=0.0)  # (n, T, C)


Source = tuple[Library, dict[str, Any], Callable[[Tensor], Tensor], dict[str, Any]]
"""Trained LoRAs, the settings they were made with, what predicts further ones, and a description of that."""


def from_library(options: argparse.Namespace, base: BaseModel, open_pool: Callable[[], PhotoPool]) -> Source:
    """Trained LoRAs, and predictions that learn from them."""
    library = load_library(options.loras)
    if options.regressor is not None:
        predict = predict_by_regressor(options.regressor, library, base.fingerprint, open_pool())
        how = {"regressor": options.regressor.parent.name}
    elif options.checkpoint is not None:
        checkpoint = load_checkpoint(options.checkpoint, layout=library.layout)
        predict = predict_by_checkpoint(checkpoint, library, open_pool())
        how = {"checkpoint": digest_of(options.checkpoint)}
    else:
        predict = predict_by_ridge(library, open_pool(), options.gain)
        how = {"gain": options.gain}
    return library, read_config(options.loras), predict, how


def corrected(options: argparse.Namespace, base: BaseModel, open_pool: Callable[[], PhotoPool]) -> Source:
    """Nobody's LoRA, and the corrected predictions of a checkpoint."""
    checkpoint, digest = load_checkpoint(options.checkpoint), digest_of(options.checkpoint)
    layout = checkpoint.layout
    nothing = torch.zeros(0, layout.num_parameters)  # (0, P)
    library = Library(layout, checkpoint.shared_down, nothing, torch.zeros(0, dtype=torch.long))
    correction = Correction.load(options.correction, digest)
    predict = predict_corrected(checkpoint, open_pool(), correction)
    settings = {
        "base_model": base.name,
        "base_model_fingerprint": base.fingerprint,
        "layout": layout.to_json(),
    }
    return library, settings, predict, {"checkpoint": digest, "correction": digest_of(options.correction)}


def predictions_of(folder: Path, count: int) -> Library:
    """What a library by this script predicts for the first people; trained LoRAs, before them, are left out.

    Raises:
        CheckpointError: it was made by another script, or for fewer people.
    """
    library, made = load_library(folder), read_config(folder).get("amortised", {}).get("people", 0)
    if made < count:
        raise CheckpointError(
            f"{folder} has predictions for {made} people: give a library that amortise has made for {count}"
        )
    first = len(library.flat) - made
    rows = slice(first, first + count)
    return replace(library, flat=library.flat[rows], people=library.people[rows])


def averaged(options: argparse.Namespace) -> Source:
    """Nobody's LoRA, and the mean of what several libraries by this script predict for the same people.

    Raises:
        CheckpointError: one is not by this script, or they do not fit each other.
    """
    folders: list[Path] = options.average
    libraries = [predictions_of(folder, options.people) for folder in folders]
    configs = [{key: read_config(folder)[key] for key in BASE_SETTINGS} for folder in folders]
    first = libraries[0]
    for folder, library, config in zip(folders, libraries, configs, strict=True):
        downs = [library.shared_down[name].equal(down) for name, down in first.shared_down.items()]
        if config != configs[0] or not all(downs):
            raise CheckpointError(f"{folder} is for another base model or lora_down than {folders[0]}")
    mean = torch.stack([library.flat for library in libraries]).mean(dim=0)  # (people, P)
    nobody = replace(first, flat=first.flat[:0], people=first.people[:0])
    how = {"average": [digest_of(folder / "config.json") for folder in folders]}
    return nobody, configs[0], lambda rows: mean[rows], how


def photos_of_everybody(options: argparse.Namespace, base: BaseModel) -> PhotoPool:
    """Photos of everybody who is to have a LoRA, as `train_dit` reads them: rendered once, then cached."""
    dit = preset("synthetic").dit
    encoders = preset("synthetic").encoders(options.face_pack, options.image_encoder, options.device)
    people = ScatteredPeople("train", dit.photos_per_person, dit.seed)
    return build_pool(options.cache / "train", people, options.people, base, *encoders)


def main(arguments: list[str] | None = None) -> None:
    """Read the library, predict everybody's LoRA, write both as a new library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    library_option(parser, "runs/loras")
    parser.add_argument("--out", type=Path, default=Path("runs/loras_amortised"), help="the new library")
    parser.add_argument("--cache", type=Path, default=Path("runs/photos"), help="features, as for train_dit")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument(
        "--people", type=int, default=preset("synthetic").dit.pool_people, help="how many people get a LoRA"
    )
    parser.add_argument(
        "--gain", type=float, default=1.5, help="undoes the shrinkage; the strength ridge likes"
    )
    parser.add_argument("--regressor", type=Path, help="by train_regressor, predicts instead of ridge")
    parser.add_argument("--checkpoint", type=Path, help="DiffLoRA that the library's training started from")
    parser.add_argument(
        "--correction", type=Path, help="of that checkpoint, by train_correction: no --library is read"
    )
    parser.add_argument(
        "--average",
        type=Path,
        nargs="+",
        help="libraries by this script, to write their mean",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    options = parser.parse_args(arguments)
    if options.regressor and options.checkpoint:
        parser.error("--regressor and --checkpoint both predict: give one of them")
    if options.correction and not options.checkpoint:
        parser.error("--correction corrects a checkpoint: give that as --checkpoint")
    if options.average and (options.checkpoint or options.regressor):
        parser.error("--average predicts nothing: leave --checkpoint and --regressor out")
    if options.average:
        library, settings, predict, how = averaged(options)
    else:
        base = BaseModel.load(options.base)
        made = corrected if options.correction else from_library
        library, settings, predict, how = made(options, base, lambda: photos_of_everybody(options, base))
    settings = settings | {"amortised": {"people": options.people, **how}}
    folder = open_run(options.out, settings)
    save_safetensors(folder / SHARED_DOWN_NAME, library.shared_down)
    parts = [(library.flat, library.people)] if len(library.flat) else []
    for rows in torch.arange(options.people).split(SHARD_PEOPLE):
        parts.append((predict(rows), rows))
    for number, (flat, rows) in enumerate(parts):
        path = folder / "train" / f"shard-{number:05d}.safetensors"
        save_safetensors(path, {"flat_weights": flat, "people": rows})
    say(f"{len(library.flat)} trained and {options.people} predicted LoRAs in {folder}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
