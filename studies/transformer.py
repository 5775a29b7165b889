"""Study of MIF and DiT: what each choice is worth in identity similarity of generated pictures.

    python -m studies.transformer

Trains small variants in weight space at the same budget, then varies how the shipped checkpoint is sampled.
Needs the runs of the README's training commands (`runs/loras_amortised`, `runs/lae`). Stopped, it goes on.
Every row asks about validation people, one photo each unless it says otherwise. The conditioning recogniser
chooses the strength of a row; the evaluation recogniser says what is reported and chooses nothing.
Letters: B people, N photos, K pictures, n candidates, T latent tokens, C channels, P parameters of a LoRA.
"""

import argparse
import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.candidates import PROMPT
from difflora.checkpoint import load_checkpoint
from difflora.errors import DiffLoRAError
from difflora.features import FaceAnalyzer
from difflora.hypernetwork import LoraHypernetwork
from difflora.layout import SharedDown
from difflora.model import EMBEDDED_CHECKPOINT
from difflora.synthetic import world
from difflora.synthetic.judge import Judge
from difflora.synthetic.people import sample_people
from studies.transformer_gallery import Gallery, remember, short_digest, similarity
from studies.transformer_report import write_study
from studies.transformer_variants import (
    VARIANTS,
    Material,
    Variant,
    sample_flat,
    train_variant,
    training_config,
)
from training.common import machine, read_config, say
from training.evaluation_people import prompt_scenes
from training.evaluation_pictures import ConditioningLikeness, Likeness
from training.evaluation_scores import pairwise_cosine, with_error
from training.lora_library import library_option, load_library
from training.photo_pool import PhotoPool, ScatteredPeople, build_pool, choose_photos
from training.presets import preset
from training.train_lae import TrainedLae

Features = tuple[Tensor, Tensor, Tensor]
"""What MIF sees: face (B, N, 512), image (B, N, C), mask (B, N)."""
RANKING_PICTURES = 4
SHIPPED_STRENGTHS = (1.25,)
"""What validation people chose for the shipped checkpoint."""
GUIDANCE_STRENGTHS = (0.75, 1.0, 1.25)
"""Guidance makes LoRAs larger: each needs its own strength."""
CANDIDATES = (1, 2, 4, 8)


def first_features(pool: PhotoPool, count: int = 1) -> Features:
    """Features of `count` photos of everybody: the same first ones for every row."""
    references, *_ = choose_photos(pool.valid, count, 0, torch.Generator().manual_seed(1))  # (B, N)
    everybody = torch.arange(len(pool), device=pool.valid.device)  # (B,)
    return pool.references(everybody, references, pool.valid.gather(1, references))


def trained_rows(
    material: Material, gallery: Gallery, options: argparse.Namespace, key: str
) -> dict[str, dict[str, Any]]:
    """Variant -> what was measured on its pictures, trained now or before."""
    rows = {}
    for variant in [variant for variant in VARIANTS if variant.name in options.variants]:

        def make(variant: Variant = variant) -> dict[str, Any]:
            config = training_config(variant, options.steps, options.more_steps, options.seed)
            started = time.process_time()
            networks, measured = train_variant(variant, material, config, options.run)
            seconds = time.process_time() - started
            features = first_features(variant.features(material.validation))
            _, flat = sample_flat(networks, features)
            return {
                **measured,
                "seconds": round(seconds),
                "curve": gallery.measure(networks, flat, options.strengths),
            }

        say(f"variant {variant.name}")
        rows[variant.name] = remember(options.run / "rows" / f"{variant.name}-{key}.json", make)
    return rows


def shipped_rows(networks: LoraHypernetwork, pool: PhotoPool, gallery: Gallery) -> dict[str, dict[str, Any]]:
    """Section/row -> what was measured with the shipped checkpoint, sampled in many ways."""
    asked: dict[str, dict[str, Any]] = {}
    for count in (1, 2, 3, 4, 8):
        asked[f"photos/{count}"] = {"features": first_features(pool, count)}
    for guidance in (1.0, 1.5, 2.0, 3.0):
        asked[f"guidance/{guidance:g}"] = {"guidance_scale": guidance}
    for steps in (1, 2, 4, 8, 16):
        asked[f"steps, mean prediction/{steps}"] = {"num_steps": steps}
    for steps in (1, 2, 4, 8, 16):
        asked[f"steps, noise 1/{steps}"] = {"num_steps": steps, "noise_scale": 1.0}
    for noise in (0.0, 0.5, 1.0):
        asked[f"noise scale/{noise:g}"] = {"noise_scale": noise}
    rows = {}
    for name, settings in asked.items():
        say(name)
        _, flat = sample_flat(networks, **{"features": first_features(pool), **settings})
        strengths = GUIDANCE_STRENGTHS if "guidance_scale" in settings else SHIPPED_STRENGTHS
        rows[name] = {"curve": gallery.measure(networks, flat, strengths)}
    return rows


def candidate_rows(
    networks: LoraHypernetwork, pool: PhotoPool, gallery: Gallery, options: argparse.Namespace, key: str
) -> dict[str, dict[str, Any]]:
    """Best of K, for noise scale 1: the conditioning recogniser keeps what looks most like the photo."""

    def make() -> dict[str, Any]:
        features = first_features(pool)
        drawn = [sample_flat(networks, features, seed, noise_scale=1.0) for seed in range(max(CANDIDATES))]
        latents = torch.stack([latent for latent, _ in drawn], dim=1)  # (B, n, T, C)
        flats = torch.stack([flat for _, flat in drawn], dim=1)  # (B, n, P)
        pictures = torch.stack(
            [
                gallery.draw(networks, flat, options.rank_strength, [PROMPT] * RANKING_PICTURES)
                for _, flat in drawn
            ],
            dim=1,
        )  # (B, n, K, 3, H, W)
        photo = features[0][:, 0].cpu()  # (B, 512)
        likeness, judge = gallery.judges["conditioning"], gallery.judges["evaluation"]
        flattened = pictures.flatten(1, 2)  # (B, n*K, 3, H, W)
        rank = similarity(likeness, flattened, photo).unflatten(1, pictures.shape[1:3]).mean(dim=2)  # (B, n)
        faces = judge.embed(flattened.flatten(0, 1)).reshape(*pictures.shape[:3], -1)  # (B, n, K, E)
        rows = {}
        for count in CANDIDATES:
            best = rank[:, :count].argmax(dim=1)  # (B,)
            flat = flats[torch.arange(len(best)), best.to(flats.device)]  # (B, P)
            row: dict[str, Any] = {"curve": gallery.measure(networks, flat, SHIPPED_STRENGTHS)}
            if count > 1:
                alike = pairwise_cosine(latents[:, :count].flatten(2))  # (B,)
                row["cosine_of_latents"] = with_error(alike.cpu())
                row["cosine_of_faces"] = with_error(
                    pairwise_cosine(faces[:, :count].transpose(1, 2)).mean(dim=1).cpu()
                )
                row["spread_of_ranking"] = with_error(rank[:, :count].std(dim=1))
            rows[f"best of/{count}"] = row
        return rows

    say("best of K")
    return remember(options.run / "rows" / f"best_of-{key}.json", make)


def open_material(options: argparse.Namespace, base: BaseModel) -> tuple[Material, FaceAnalyzer]:
    """Load library, LAE, photos and encoders.

    Raises:
        DiffLoRAError: the library is not one of trained and predicted LoRAs.
    """
    config = preset("synthetic").dit
    library = load_library(options.loras, mapped=True)
    if "amortised" not in read_config(options.loras):
        raise DiffLoRAError(
            f"{options.loras} has no predicted LoRAs: give what training.amortise wrote (--library)"
        )
    predicted = read_config(options.loras)["amortised"]["people"]
    face_analyzer, image_encoder = preset("synthetic").encoders(device=options.device)
    encoders = (base, face_analyzer, image_encoder)
    train_people, validation = (
        ScatteredPeople(split, config.photos_per_person, config.seed) for split in ("train", "validation")
    )
    pool = build_pool(options.cache / "train", train_people, predicted, *encoders)
    asked = build_pool(options.cache / "validation", validation, config.validation_people, *encoders)
    asked = asked.select(torch.arange(min(options.people, len(asked))))
    library = replace(library, people=library.people.to(options.device))
    lae = TrainedLae.load(options.lae)
    device = options.device
    trained = len(library.people) - predicted
    return Material(
        library, trained, lae, pool.to(device), asked.to(device), base, image_encoder
    ), face_analyzer


def open_gallery(
    options: argparse.Namespace, base: BaseModel, shared_down: SharedDown | None, face_analyzer: FaceAnalyzer
) -> Gallery:
    """Judges and prompts; the people are those of the validation pool."""
    traits = sample_people("validation", 0, options.people)  # (B, traits)
    judges: dict[str, Likeness] = {
        "conditioning": ConditioningLikeness(face_analyzer),
        "evaluation": Judge.load(),
    }
    targets = {name: judge.targets(traits) for name, judge in judges.items()}
    prompts = prompt_scenes("validation", options.prompts).prompts()
    return Gallery(
        base,
        shared_down,
        judges,
        targets,
        prompts,
        options.picture_steps,
        options.seed,
        options.run / "pictures",
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.transformer", description=__doc__.splitlines()[0]
    )
    library_option(parser, "runs/loras_amortised")
    parser.add_argument(
        "--lae", type=Path, default=Path("runs/lae/lae.safetensors"), help="what train_lae wrote"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/photos"), help="features, as for train_dit")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/study_transformer"), help="work folder, resumed"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument(
        "--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT, help="that is sampled in many ways"
    )
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--steps", type=int, default=600, help="of every variant, in weight space")
    parser.add_argument("--more-steps", type=int, default=60, help="of the second stage")
    parser.add_argument("--people", type=int, default=32, help="validation people, at most those of the pool")
    parser.add_argument("--prompts", type=int, default=4, help="pictures of each person")
    parser.add_argument("--picture-steps", type=int, default=8, help="of the base model's sampler")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[1.0, 1.25, 1.5], help="of trained variants"
    )
    parser.add_argument("--rank-strength", type=float, default=1.25, help="at which candidates are compared")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="*", default=names, help="that are trained; none: only sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if unknown := set(options.variants) - set(names):
        parser.error(f"unknown variants {', '.join(sorted(unknown))}: use some of {', '.join(names)}")
    for variant in VARIANTS:
        if variant.name in options.variants and variant.after not in (None, *options.variants):
            parser.error(f"--variants lacks {variant.after}, from which {variant.name} starts: add it")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, sample, draw, measure, report."""
    options = parse(arguments)
    base = BaseModel.load(options.base, options.device)
    material, face_analyzer = open_material(options, base)
    shipped = load_checkpoint(options.checkpoint, options.device)
    gallery = open_gallery(options, base, shipped.shared_down, face_analyzer)
    drawing = [options.people, options.prompts, options.picture_steps, options.seed, base.fingerprint]
    training = [*drawing, options.steps, options.more_steps, options.strengths]
    rows = trained_rows(material, gallery, options, short_digest(training))
    content = hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()
    key = short_digest([*drawing, options.rank_strength, content])
    sampled = shipped_rows(shipped.networks, material.validation, gallery)
    sampled |= candidate_rows(shipped.networks, material.validation, gallery, options, key)
    settings = {
        "people": options.people, "prompts": options.prompts, "picture_steps": options.picture_steps,
        "steps": options.steps, "more_steps": options.more_steps, "strengths": options.strengths,
        "shipped_strengths": SHIPPED_STRENGTHS, "guidance_strengths": GUIDANCE_STRENGTHS,
        "seed": options.seed, "base_model": base.fingerprint,
        "checkpoint": content[:16], "whole": material.whole, "trained": material.trained,
    }  # fmt: skip
    command = shlex.join(
        ["python", "-m", "studies.transformer", *(sys.argv[1:] if arguments is None else arguments)]
    )
    origin = {"command": command, "machine": f"{machine()}, device {options.device}"}
    write_study(options.out, {**origin, "settings": settings}, rows, sampled)


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
