"""Make a cleaner, larger library from a small one: `python -m training.amortise`.

LoRAs that were trained one by one hold the person and the luck of their training. A ridge regression from a
person's features averages the luck away, and predicts LoRAs for people who were never trained. LAE and DiT
then learn from those predictions as well: the linear start, from which the image loss goes on. [ours]
With `--regressor` the end-to-end regressor predicts instead, which already knows the image loss.

Letters: n LoRAs of the small library, M people with photos, F photos of each, C feature width,
P parameters of one LoRA.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.autoencoder import explained_variance
from difflora.base_model import BaseModel
from difflora.controls import RidgeRegression
from difflora.files import save_safetensors
from difflora.normalisation import LoraNormalisation
from difflora.synthetic import world
from training.basis_regressor import open_regressor
from training.common import open_run, read_config, say
from training.lora_library import SHARED_DOWN_NAME, Library, library_option, load_library
from training.photo_pool import PhotoPool, ScatteredPeople, build_pool
from training.presets import preset

REGULARISERS = (0.003, 0.01, 0.03, 0.1, 0.3)
SHARD_PEOPLE = 64


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


def main(arguments: list[str] | None = None) -> None:
    """Read the library, predict everybody's LoRA, write both as a new library."""
    dit = preset("synthetic").dit
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    library_option(parser, "runs/loras")
    parser.add_argument("--out", type=Path, default=Path("runs/loras_amortised"), help="the new library")
    parser.add_argument("--cache", type=Path, default=Path("runs/photos"), help="features, as for train_dit")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument("--people", type=int, default=dit.pool_people, help="how many people get a LoRA")
    parser.add_argument(
        "--gain", type=float, default=1.5, help="undoes the shrinkage; the strength ridge likes"
    )
    parser.add_argument("--regressor", type=Path, help="by train_regressor, predicts instead of ridge")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    options = parser.parse_args(arguments)
    library = load_library(options.loras)
    base = BaseModel.load(options.base)
    encoders = preset("synthetic").encoders(options.face_pack, options.image_encoder, options.device)
    people = ScatteredPeople("train", dit.photos_per_person, dit.seed)
    pool = build_pool(options.cache / "train", people, options.people, base, *encoders)

    if options.regressor is None:
        predict = predict_by_ridge(library, pool, options.gain)
        how = {"people": options.people, "gain": options.gain}
    else:
        predict = predict_by_regressor(options.regressor, library, base.fingerprint, pool)
        how = {"people": options.people, "regressor": options.regressor.parent.name}

    folder = open_run(options.out, read_config(options.loras) | {"amortised": how})
    save_safetensors(folder / SHARED_DOWN_NAME, library.shared_down)
    parts = [(library.flat, library.people)]
    for rows in torch.arange(options.people).split(SHARD_PEOPLE):
        parts.append((predict(rows), rows))
    for number, (flat, rows) in enumerate(parts):
        path = folder / "train" / f"shard-{number:05d}.safetensors"
        save_safetensors(path, {"flat_weights": flat, "people": rows})
    say(f"{len(library.flat)} trained and {options.people} predicted LoRAs in {folder}")


if __name__ == "__main__":
    main()
