"""What of the weight autoencoder is needed, and what it costs: `python -m studies.autoencoder`.

Variants of the LAE (`studies.lae_variants`) and principal components learn from one library. Judged by
pictures: how much of the similarity that a held-out person's LoRA gains over the base model is left after
compressing and decoding it. Two kinds of LoRAs are compressed: trained ones, with their luck, and predicted
ones, without. Trained ones a second time, with the code fitted to what the LoRA does: that tells what the
encoder loses from what the decoder cannot say (`training.latent_fitting`). Then two experiments of the paper:
keep only some of a LoRA's numbers (Fig. 4), and compress low-rank against full-rank weights (Fig. 2;
libraries of `studies.learnability`).

Needs a library with trained and predicted LoRAs (`training.make_loras`, also with `--split validation`, then
`training.amortise`). Trained networks and measured pictures are kept: run it again to go on.
Letters: n LoRAs of a library, B held-out people, P parameters of one LoRA, Q principal components.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.autoencoder import LoraAutoencoder, explained_variance
from difflora.base_model import BaseModel
from difflora.controls import PrincipalComponents
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.files import atomic_save
from difflora.normalisation import LoraNormalisation
from difflora.synthetic import world
from difflora.synthetic.judge import Judge
from studies.autoencoder_report import draw_plot, tables
from studies.common import Gallery, interval, study_options, write_study
from studies.lae_variants import TRAINING, VARIANTS, Variant
from studies.libraries import SETTINGS, Loras
from training.common import open_run, read_config, say
from training.latent_fitting import fit_codes
from training.lora_library import Library, load_library
from training.presets import PRESETS
from training.train_lae import TrainedLae, split_library, train

STRONGER = 1.5
"""Decoded LoRAs of trained ones are weaker than these: they are drawn at this strength as well."""
COMPONENTS = {"trained": (256,), "all": (256, 1024)}
"""Of the trained LoRAs alone, and of these and the predicted ones."""
KEPT_SHARES = (0.01, 0.05, 0.2, 0.5, 0.8)
RANK_LIBRARIES = ("attention_rank_1", "attention", "attention_rank_64")
RANK_COMPONENTS = (8, 16, 31)


@dataclass(frozen=True)
class Codec:
    """Compresses and decodes LoRAs.

    Args:
        encode: normalised (B, P) -> codes (B, ...).
        decode: codes (B, ...) -> normalised (B, P).
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Group:
    """LoRAs of held-out people, which nothing has learned from.

    Args:
        loras: (B, P), drawn at strength 1.
        gallery: of their people.
    """

    loras: Loras
    gallery: Gallery

    @property
    def gain(self) -> Tensor:
        """What the LoRAs add to the base model's similarity, (B,)."""
        return self.gallery.similarity(self.loras.batch(1.0)) - self.base

    @property
    def base(self) -> Tensor:
        """Similarity of the base model, (B,)."""
        return self.gallery.similarity(None)

    def kept(self, flat: Tensor, strength: float = 1.0) -> dict[str, float]:
        """Share of the gain that other LoRAs (B, P) of these people have."""
        return interval(self.gallery.similarity(self.loras.batch(strength, flat)) - self.base, self.gain)


# --- compressing ------------------------------------------------------------------------------------------


def train_variant(
    name: str, variant: Variant, library: Library, options: argparse.Namespace
) -> tuple[LoraAutoencoder, LoraNormalisation, float]:
    """The trained network, its normalisation, and the CPU seconds that it cost, resumed if it was stopped."""
    folder = options.run / f"lae_{name}"
    config = replace(variant.training, num_steps=options.steps, warmup=min(TRAINING.warmup, options.steps))
    settings = {"lae": asdict(variant.lae), "training": asdict(config), "network": variant.network.__name__}
    facts = {"loss": variant.loss.__name__, "layout": library.layout.fingerprint, "loras": len(library.flat)}
    open_run(folder, settings | facts)
    path = folder / "seconds.json"
    start = time.process_time()
    say(f"{variant.label}:")
    network, loss = variant.network, variant.loss
    lae, normalisation = train(
        library.flat, library.layout, variant.lae, config, folder, options.device, network, loss
    )
    if not path.is_file():  # of the last part only, if it was stopped meanwhile
        spent = json.dumps(time.process_time() - start)
        atomic_save(path, lambda temporary: temporary.write_text(spent, encoding="utf-8"))
    return lae, normalisation, json.loads(path.read_text(encoding="utf-8"))


def measure_codec(
    codec: Codec, normalisation: LoraNormalisation, groups: Mapping[str, Group]
) -> dict[str, Any]:
    """R2 and share of the gain that is kept, for both kinds of LoRAs.

    Args:
        codec: compresses and decodes.
        normalisation: of its library.
        groups: kind of LoRA -> held-out people.
    """

    def weights(codes: Tensor) -> Tensor:
        return normalisation.denormalise(codec.decode(codes))  # (B, P)

    row: dict[str, Any] = {}
    for kind, group in groups.items():
        normal = normalisation.normalise(group.loras.flat)  # (B, P)
        with torch.no_grad():
            codes = codec.encode(normal)  # (B, ...)
            flat = weights(codes)  # (B, P)
            r2 = float(explained_variance(normalisation.normalise(flat), normal))
        row[kind] = {"r2": round(r2, 4), "kept": group.kept(flat)}
        if kind == "trained":
            row[kind]["kept_stronger"] = group.kept(flat, STRONGER)
            fitted = fit_codes(group.gallery.base, group.loras.batch(1.0), weights, codes)  # (B, ...)
            with torch.no_grad():
                row[kind]["kept_fitted"] = group.kept(weights(fitted))
    return row


def measure_lae(
    lae: LoraAutoencoder, normalisation: LoraNormalisation, groups: Mapping[str, Group], device: str
) -> dict[str, Any]:
    """What a trained LAE keeps."""
    lae = lae.to(device).train(False)
    codec = Codec(lambda flat: lae.encode(flat.to(device)), lambda codes: lae.decode(codes).cpu())
    return measure_codec(codec, normalisation.to("cpu"), groups)


def measurements(
    library: Library, trained: Library, groups: Mapping[str, Group], options: argparse.Namespace
) -> Iterator[dict[str, dict[str, Any]]]:
    """Rows of the report's parts `components` and `variants`, the quick ones first."""
    yield {"components": measure_components("trained", trained, groups, COMPONENTS["trained"])}
    if options.lae:
        made = TrainedLae.load(options.lae)
        config = made.lae.config
        facts = {"numbers": config.latent_tokens * config.latent_channels, "seconds": None}
        measured = measure_lae(made.lae, made.normalisation, groups, options.device)
        row = {"label": f"default, {options.lae_steps} steps", **facts, **measured}
        yield {"variants": {"made_before": row}}
    yield {"components": measure_components("all", library, groups, COMPONENTS["all"])}
    for name in options.variants:
        variant = VARIANTS[name]
        own = trained if variant.trained_only else library
        lae, normalisation, seconds = train_variant(name, variant, own, options)
        measured = measure_lae(lae, normalisation, groups, options.device)
        facts = {"numbers": variant.latent_numbers, "seconds": round(seconds, 1)}
        yield {"variants": {name: {"label": variant.label, **facts, **measured}}}


def measure_components(
    name: str, library: Library, groups: Mapping[str, Group], components: Sequence[int]
) -> dict[str, Any]:
    """Principal components of a library as a control."""
    rows = {}
    training, _ = split_library(len(library.flat), TRAINING.held_out)
    normalisation = LoraNormalisation.fit(library.flat[training], library.layout)
    normal = normalisation.normalise(library.flat[training])  # (n, P)
    start = time.process_time()
    most = PrincipalComponents.fit(normal, min(max(components), len(normal) - 1))
    seconds = time.process_time() - start
    # a library of few people has fewer than were asked for
    for numbers in sorted({min(count, len(most.basis)) for count in components}):
        fewer = replace(most, basis=most.basis[:numbers])  # (Q, P)
        row = measure_codec(Codec(fewer.project, fewer.reconstruct), normalisation, groups)
        label = f"{numbers} principal components, {name} LoRAs"
        rows[f"pca_{name}_{numbers}"] = {"label": label, "numbers": numbers, "seconds": seconds, **row}
        say(f"{label}: {row}")
    return rows


# --- the paper's figures ----------------------------------------------------------------------------------


def keep_numbers(flat: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """LoRAs of which only a share of the numbers is left, the others being 0.

    Args:
        flat: (B, P).
        share: in 0 .. 1.
        generator: which numbers; None keeps the largest.
    """
    score = flat.abs() if generator is None else torch.rand(flat.shape, generator=generator)  # (B, P)
    least = score.topk(max(1, round(share * flat.shape[1])), dim=1).values[:, -1:]  # (B, 1)
    return torch.where(score >= least, flat, 0.0)  # (B, P)


def measure_kept(group: Group) -> dict[str, dict[str, Any]]:
    """Fig. 4 of the paper: which numbers of a LoRA hold the person?"""
    flat, rows = group.loras.flat, {}
    for share in KEPT_SHARES:
        chosen = keep_numbers(flat, share, torch.Generator().manual_seed(0))
        ways = {"largest": keep_numbers(flat, share, None), "random": chosen, "rescaled": chosen / share}
        rows[f"{share:g}"] = {way: group.kept(weights) for way, weights in ways.items()}
        say(f"{share:.0%} of the numbers: {rows[f'{share:g}']}")
    return rows


def measure_ranks(folder: Path, base: BaseModel, gallery: Gallery) -> dict[str, Any]:
    """Fig. 2 of the paper: LoRAs of few and of many ranks on the same modules, the same people.

    Principal components of the training people's LoRAs compress those of the held-out people.
    """
    rows: dict[str, Any] = {}
    for name in RANK_LIBRARIES:
        config = folder / name / "config.json"
        if not config.is_file() or read_config(folder / name)["base_model_fingerprint"] != base.fingerprint:
            say(f"no library {folder / name}: run studies.learnability for it")
            continue
        try:
            people = len(load_library(folder / name, "train").flat)
            known = Loras.read(folder / name, SETTINGS[name], "train", people)
            asked = Loras.read(folder / name, SETTINGS[name], "validation", len(gallery.traits))
        except CheckpointError as error:
            say(f"library {folder / name} is not finished ({error}): run studies.learnability for it")
            continue
        group = Group(asked, gallery)
        normalisation = LoraNormalisation.fit(known.flat, known.layout)
        normal, targets = normalisation.normalise(known.flat), normalisation.normalise(asked.flat)
        row: dict[str, Any] = {
            "label": SETTINGS[name].label,
            "parameters": known.layout.num_parameters,
            "gain": interval(group.gain),
        }
        most = PrincipalComponents.fit(normal, min(max(RANK_COMPONENTS), people - 1))
        for count in sorted({min(count, len(most.basis)) for count in RANK_COMPONENTS}):
            fewer = replace(most, basis=most.basis[:count])  # (Q, P)
            decoded = fewer.reconstruct(fewer.project(targets))  # (B, P)
            r2 = round(float(explained_variance(decoded, targets)), 4)
            row[f"{count}"] = {"r2": r2, "kept": group.kept(normalisation.denormalise(decoded))}
        rows[name] = row
        say(f"{name}: {row}")
    return rows


# --- all of it --------------------------------------------------------------------------------------------


def open_groups(
    base: BaseModel, library: Library, trained: Path, options: argparse.Namespace
) -> dict[str, Group]:
    """Trained LoRAs of validation people, and predictions that the library holds out."""
    judge, count = Judge.load(), options.held_out
    own = Loras.read(trained, SETTINGS["default"], "validation", count)
    _, held_out = split_library(len(library.flat), TRAINING.held_out)
    rows = range(len(library.flat) - min(count, held_out.stop - held_out.start), len(library.flat))
    predicted = Loras(library.layout, library.shared_down, library.flat[list(rows)])
    people = library.people[list(rows)].tolist()
    return {
        "trained": Group(own, Gallery.of_people(base, judge, "validation", range(count), options)),
        "predicted": Group(predicted, Gallery.of_people(base, judge, "train", people, options)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, networks, pictures, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    study_options(parser, "autoencoder")
    parser.add_argument(
        "--library", dest="loras", type=Path, default=Path("runs/loras_amortised"), help="by amortise"
    )
    parser.add_argument("--trained", type=Path, default=Path("runs/loras"), help="by make_loras")
    parser.add_argument("--people", type=int, default=0, help="LoRAs of the library to learn from; 0 is all")
    parser.add_argument("--steps", type=int, default=300, help="of every variant")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--lae", type=Path, help="lae.safetensors by train_lae, to be measured as well")
    parser.add_argument("--lae-steps", type=int, default=PRESETS["synthetic"].lae.num_steps, help="of it")
    parser.add_argument(
        "--ranks", type=Path, default=Path("runs/study_learnability"), help="of studies.learnability"
    )
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    options = parser.parse_args(arguments)
    base = BaseModel.load(options.base, options.device)
    library, trained = load_library(options.loras), load_library(options.trained)
    if options.people:
        library = replace(
            library, flat=library.flat[-options.people :], people=library.people[-options.people :]
        )
    groups = open_groups(base, library, options.trained, options)
    report: dict[str, Any] = {
        "steps": options.steps,
        "parameters": library.layout.num_parameters,
        "held_out": {kind: len(group.loras.flat) for kind, group in groups.items()},
        "prompts": options.prompts,
        "original": {
            kind: {"base": interval(group.base), "gain": interval(group.gain)}
            for kind, group in groups.items()
        },
        "kept": measure_kept(groups["trained"]),
        "components": {},
        "variants": {},
        "ranks": measure_ranks(options.ranks, base, groups["trained"].gallery),
    }

    def save() -> None:  # a network takes minutes: what is known is written before the next one
        write_study(options.out, "autoencoder", report, tables(report), draw_plot(report))

    save()
    for rows in measurements(library, trained, groups, options):
        report |= {part: report[part] | own for part, own in rows.items()}
        save()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
