"""How learnable is a library of LoRAs, and which setting makes it so: `python -m studies.learnability`.

Twins: the same people trained again with other luck. How much of a LoRA is the person?
Settings: `lora_down` shared or not, rank, targets, steps. For each: how alike the trained LoRAs of held-out
people are (what a setting can do), and how alike LoRAs that a ridge regression predicts for them from their
photos (what of it can be learned).

Trained shards and measured pictures are kept: run it again to go on.
Letters: B people of a shard, n people, P parameters of one LoRA, R rank, C feature width.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.errors import DiffLoRAError
from difflora.features import FaceAnalyzer, ImageEncoder
from difflora.files import load_safetensors
from difflora.normalisation import LoraNormalisation
from difflora.synthetic import world
from difflora.synthetic.judge import Judge
from studies.common import Gallery, interval, shown, study_options, table, write_study
from studies.libraries import (
    OWN_SEED,
    PROBE_PEOPLE,
    SETTINGS,
    Loras,
    make_library,
    seconds_per_person,
)
from training.amortise import fit, person_features
from training.common import say
from training.lora_library import Shard, deal_shards
from training.make_loras import make_shards, training_pictures
from training.photo_pool import ScatteredPeople, build_pool
from training.pictures import RenderedPeople

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHOTOS = 8
TRAINED_STRENGTH, PREDICTED_STRENGTH = 1.0, 1.5
"""What validation people chose for trained LoRAs and for ridge predictions (docs/results.md)."""


# --- settings ---------------------------------------------------------------------------------------------


def predict(trained: Loras, features: Tensor, asked: Tensor) -> tuple[Tensor, float]:
    """Ridge regression from photos, its regulariser chosen on a quarter of the library's own people.

    Args:
        trained: n LoRAs.
        features: (n, C) of their people.
        asked: (B, C) of others.

    Returns:
        (B, P) and R2 on that quarter.
    """
    normalisation = LoraNormalisation.fit(trained.flat, trained.layout)
    targets = normalisation.normalise(trained.flat)  # (n, P)
    ridge, _, score = fit(features, targets, max(1, len(targets) // 4))
    return normalisation.denormalise(ridge.predict(asked)), score  # (B, P)


def measure_setting(
    base: BaseModel, name: str, features: tuple[Tensor, Tensor], gallery: Gallery, options: argparse.Namespace
) -> dict[str, Any]:
    """Make a library, predict the held-out people, draw both.

    Args:
        base: base model.
        name: key of `SETTINGS`.
        features: (n, C) of the library's people and (B, C) of the held-out ones.
        gallery: of the held-out people.
        options: command line.

    Returns:
        JSON values, and similarities (B,) under `trained` and `predicted`.
    """
    setting, folder = SETTINGS[name], make(base, name, options)
    trained = Loras.read(folder, setting, "train", len(features[0]))
    own = Loras.read(folder, setting, "validation", len(features[1]))
    predicted, score = predict(trained, *features)  # (B, P)
    latents = training_pictures(base, RenderedPeople("train", 4), range(PROBE_PEOPLE))
    row = {
        "label": setting.label,
        "numbers": trained.layout.num_parameters,
        "seconds_per_person": round(seconds_per_person(base, setting, latents), 2),
        "ridge_r2": round(score, 4),
        "trained": gallery.similarity(own.batch(TRAINED_STRENGTH)),  # (B,)
        "trained_stronger": gallery.similarity(own.batch(PREDICTED_STRENGTH)),  # (B,)
        "predicted": gallery.similarity(own.batch(PREDICTED_STRENGTH, predicted)),  # (B,)
    }
    say(f"{name}: trained {row['trained'].mean():.3f}, predicted {row['predicted'].mean():.3f}")
    return row


def make(base: BaseModel, name: str, options: argparse.Namespace) -> Path:
    """The folder of a setting's library, made where it is missing; the default one may start as a copy."""
    name = "default" if SETTINGS[name].gauge else name
    folder = options.run / name
    if name == "default" and options.loras and not folder.exists():
        shutil.copytree(options.loras, folder, ignore=shutil.ignore_patterns("test"))
    make_library(base, SETTINGS[name], folder, {"train": options.people, "validation": options.held_out}, 0)
    return folder


# --- twins ------------------------------------------------------------------------------------------------


def shares(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Per person, what two trainings agree on and what they hold: their ratio is the person's share.

    With w_ps = mean_s + person_p + luck_ps the expected product of two centred trainings is |person_p|^2, and
    each one's square is |person_p|^2 + |luck|^2 (intraclass correlation). Luck that hits everybody alike is
    in mean_s and falls away.

    Args:
        first: (n, P).
        second: (n, P), the same people.

    Returns:
        (n,) products and (n,) geometric means of the squares.
    """
    a, b = first - first.mean(dim=0), second - second.mean(dim=0)  # (n, P)
    return (a * b).sum(dim=1), (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()  # (n,), (n,)


def measure_twins(base: BaseModel, gallery: Gallery, options: argparse.Namespace) -> dict[str, Any]:
    """Train the same people with the same random numbers for all, twice, and with everybody's own."""
    setting, people = SETTINGS["default"], range(len(gallery.traits))
    first = Loras.read(make(base, "default", options), setting, "train", len(people))
    runs = {"shared": first.flat}  # name -> (n, P)
    for name, size in (("shared_again", setting.making.batch), ("own", 1)):
        folder = options.run / f"twins_{name}"
        for shard in deal_shards(folder, "train", len(people), size):
            seed = OWN_SEED + (shard.people[0] if name == "own" else 0)
            source = RenderedPeople("train", setting.making.pictures, seed)
            make_shards([shard], base, first.layout, first.down, source, setting.making.training(), seed)
        runs[name] = read_shards(deal_shards(folder, "train", len(people), size))  # (n, P)
    normalisation = LoraNormalisation.fit(first.flat, first.layout)
    normal = {name: normalisation.normalise(flat) for name, flat in runs.items()}
    common = shares(normal["shared"], normal["shared_again"])  # (n,), (n,)
    # own luck holds what is common to all in the other run as well: the person's part is the same
    own = (
        shares(normal["shared"], normal["own"])[0],
        (normal["own"] - normal["own"].mean(dim=0)).square().sum(1),
    )
    both = torch.stack([runs["shared"], runs["shared_again"]]).mean(dim=0)  # (n, P)
    drawn = {**runs, "mean of shared and shared_again": both}
    return {
        "people": len(people),
        "person_share_shared_numbers": interval(*common),
        "person_share_own_numbers": interval(*own),
        "similarity": {
            name: interval(gallery.similarity(first.batch(1.0, flat))) for name, flat in drawn.items()
        },
    }


def read_shards(shards: Sequence[Shard]) -> Tensor:
    """Flat weights (n, P) of finished shards."""
    return torch.cat([load_safetensors(shard.path)[0]["flat_weights"].float() for shard in shards])


# --- report -----------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> str:
    """The tables of the document."""
    rows = [
        (
            row["label"],
            f"{row['numbers']:,}",
            f"{row['seconds_per_person']:.1f}",
            shown(row["trained"]),
            shown(row["predicted"]),
            shown(row["predicted_minus_default"]),
        )
        for row in report["settings"].values()
    ]
    header = (
        "setting",
        "numbers",
        "CPU s",
        "trained, strength 1",
        "predicted, strength 1.5",
        "against default",
    )
    twins = report["twins"]
    parts = [
        ("the same for everybody (default)", shown(twins["person_share_shared_numbers"], percent=True)),
        ("every person's own", shown(twins["person_share_own_numbers"], percent=True)),
    ]
    drawn = [(name, shown(value)) for name, value in twins["similarity"].items()]
    return "\n\n".join(
        (
            table(header, rows),
            table(("random numbers of training", "share of a LoRA's variance that is the person"), parts),
            table(("training of the same people", "similarity, strength 1"), drawn),
        )
    )


def draw_plot(report: Mapping[str, Any]) -> "Figure":
    """Trained and predicted similarity of every setting."""
    from matplotlib.figure import Figure

    rows = list(report["settings"].values())[::-1]
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    for offset, key, label, colour in (
        (0.18, "trained", "trained on the person, strength 1", "C0"),
        (-0.18, "predicted", "ridge from photos, strength 1.5", "C1"),
    ):
        values = [row[key] for row in rows]
        errors = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
        axes.barh(
            [place + offset for place in range(len(rows))],
            [v["mean"] for v in values],
            height=0.34, xerr=errors, label=label, color=colour, error_kw={"lw": 1},
        )  # fmt: skip
    axes.axvline(report["base_model"]["mean"], color="grey", ls=":", label="base model")
    axes.set_yticks(
        range(len(rows)), [row["label"].replace(" (default)", "").replace("; ", "\n") for row in rows]
    )
    axes.set_xlabel("identity similarity of held-out people, 95 % interval")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def person_rows(
    base: BaseModel, split: str, count: int, options: argparse.Namespace, spread: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Features of people 0 .. count - 1, see `person_features`."""
    encoders = FaceAnalyzer(world.FACE_PACK), ImageEncoder(world.IMAGE_ENCODER, options.device)
    people = ScatteredPeople(split, PHOTOS, options.seed)
    pool = build_pool(
        options.run / f"photos_{split}_{count}", people, count, base, *encoders, with_pictures=False
    )
    return person_features(pool, spread)


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, libraries, pictures, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    study_options(parser, "learnability")
    parser.add_argument("--people", type=int, default=32, help="people of each library")
    parser.add_argument("--twins", type=int, default=8, help="people who are trained again")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--library", dest="loras", type=Path, help="default library that make_loras made: copied"
    )
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    options = parser.parse_args(arguments)
    if not 2 <= options.twins <= options.people:
        raise DiffLoRAError(f"--twins {options.twins}: choose 2 to {options.people}, people of the library")
    base, judge = BaseModel.load(options.base, options.device), Judge.load()
    known, spread = person_rows(base, "train", options.people, options, None)  # (n, C), (image width,)
    asked, _ = person_rows(base, "validation", options.held_out, options, spread)  # (B, C)
    gallery = Gallery.of_people(base, judge, "validation", range(options.held_out), options)
    twins = measure_twins(
        base, Gallery.of_people(base, judge, "train", range(options.twins), options), options
    )
    report = {
        "people": options.people,
        "held_out": options.held_out,
        "prompts": options.prompts,
        "base_model": interval(gallery.similarity(None)),
        "settings": {},
        "twins": twins,
    }
    default = None
    for name in ("default", *(name for name in options.settings if name != "default")):
        row = measure_setting(base, name, (known, asked), gallery, options)
        default = row["predicted"] if default is None else default  # (B,)
        row["predicted_minus_default"] = interval(row["predicted"] - default)
        row |= {key: interval(row[key]) for key in ("trained", "trained_stronger", "predicted")}
        report["settings"][name] = row
        # a library takes minutes: what is known is written before the next one
        write_study(options.out, "learnability", report, tables(report), draw_plot(report))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
