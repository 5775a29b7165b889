"""Measure DiffLoRA against the base model, controls and trained LoRAs, on people whom nothing has seen.

    python -m training.make_loras --split validation --people 16
    python -m training.make_loras --split test --people 128
    python -m training.evaluate --readme README.md

More rows, left out without their files: LoRAs trained on the reference photo, LoRAs trained from DiffLoRA's
predictions, end-to-end regressors. And a better oracle: a library needs 60 steps, a LoRA for its own sake
gains until 240; its `lora_down` is the library's.

    python -m training.make_loras --split validation --people 16 --reference
    python -m training.make_loras --split test --people 128 --reference
    START="--start difflora/synthetic/weights/difflora.safetensors --learning-rate 0.01"
    START="$START --identity-weight 0.2 --portrait-weight 0.4"
    python -m training.make_loras $START --out runs/loras_started --split validation --people 16
    python -m training.make_loras $START --out runs/loras_started --split test --people 128
    mkdir runs/loras_240 && cp runs/loras/shared_down.safetensors runs/loras_240
    python -m training.make_loras --steps 240 --out runs/loras_240 --split validation --people 16
    python -m training.make_loras --steps 240 --out runs/loras_240 --split test --people 128
    python -m training.train_regressor
    python -m training.tune_regressor --start runs/regressor/regressor.safetensors
    MORE="--started runs/loras_started --regressor runs/regressor/regressor.safetensors"
    MORE="$MORE --tuned-regressor runs/regressor_tuned/regressor.safetensors"
    python -m training.evaluate $MORE --oracle runs/loras_240 --readme README.md

Writes `evaluation.json`, `results.md` and three pictures to `docs/`, and the README's table. Every
measurement is kept in the run folder under a digest of all that it depends on: run it again to go on.
Letters: B people, N photos of one person, K prompts, n LoRAs of the library, C width of a photo's features.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel, weights_fingerprint
from difflora.errors import DiffLoRAError
from difflora.files import atomic_save, load_safetensors, save_safetensors
from difflora.model import EMBEDDED_CHECKPOINT, DiffLoRA
from difflora.synthetic import world
from difflora.synthetic.judge import Judge
from difflora.synthetic.people import sample_people
from training.basis_regressor import open_regressor
from training.common import digest_of, machine, read_config, read_metrics, say
from training.evaluation_cost import measure_in_a_process
from training.evaluation_people import Panel, face_models, first_photos, photograph, prompt_scenes
from training.evaluation_pictures import (
    BASE_ROW,
    TRUE_ROW,
    Job,
    LoraBatch,
    run_jobs,
    spread_of_candidates,
)
from training.evaluation_report import LABELS, draw_plot, draw_sheet, write_report
from training.evaluation_rows import (
    REGULARISERS,
    Controls,
    all_rows,
    check_same_library,
    library_features,
    loras_of,
    ridge_name,
)
from training.evaluation_scores import Measurement, choose_strength, curve_values, summarise
from training.evaluation_styles import measure_styles
from training.latent_translation import Translation
from training.lora_library import REFERENCE_SUFFIX, library_option, load_library
from training.prompt_following import measure_prompt_following

MEASURES = 3
"""Version of what is measured on pictures: results of another one are measured again."""
FROM_PHOTO = (
    "nearest_lora", "ridge", "mlp", "regressor", "regressor_tuned", "difflora_1", "difflora_best",
    "difflora_refined", "difflora_4",
)  # fmt: skip
"""Rows that have to find and encode a face first."""


def make_jobs(
    rows: Mapping[str, Tensor | None],
    strengths: Mapping[str, Sequence[float]],
    split: str,
    options: argparse.Namespace,
    fingerprint: str,
) -> dict[str, dict[float, Job]]:
    """Row -> strength -> job. A result's name digests all that it depends on, so that none is ever stale."""
    people = options.people if split == "test" else options.validation_people
    seed = options.seed + (1 if split == "test" else 2)
    jobs: dict[str, dict[float, Job]] = {}
    for row, flat in rows.items():
        content = b"" if flat is None else flat.contiguous().numpy().tobytes()
        path = None
        if flat is not None:
            path = options.run / "weights" / f"{row}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
            if not path.is_file():
                save_safetensors(path, {"flat": flat})
        jobs[row] = {}
        for strength in strengths[row] if flat is not None else [0.0]:
            facts = [row if flat is None else "", split, strength, people, options.prompts]
            facts += [options.picture_steps, options.picture_guidance, seed, fingerprint, MEASURES]
            digest = hashlib.sha256(f"{facts}".encode() + content).hexdigest()[:16]
            result = options.run / "results" / f"{split}-{row}-{strength:g}-{digest}.safetensors"
            jobs[row][strength] = Job(
                row, split, strength, people, options.prompts,
                options.picture_steps, options.picture_guidance, seed,
                options.checkpoint, options.base, options.device, options.face_pack, path, result,
            )  # fmt: skip
    return jobs


def measure_split(
    split: str,
    rows: Mapping[str, Tensor | None],
    strengths: Mapping[str, Sequence[float]],
    options: argparse.Namespace,
    fingerprint: str,
) -> dict[str, dict[float, Measurement]]:
    """Row -> strength -> measurement, measured now or before."""
    jobs = make_jobs(rows, strengths, split, options, fingerprint)
    run_jobs([job for curve in jobs.values() for job in curve.values()], options.workers, split)
    return {
        row: {strength: Measurement.load(job.result) for strength, job in curve.items()}
        for row, curve in jobs.items()
    }


def open_panel(model: DiffLoRA, split: str, count: int, prompts: int) -> tuple[Panel, float]:
    """The people of a split, and CPU seconds per person for finding and encoding their faces."""
    start = time.process_time()
    photos, features = photograph(model, split, count)
    seconds = (time.process_time() - start) / count
    panel = Panel(split, sample_people(split, 0, count), prompt_scenes(split, prompts), photos, features)
    return panel, seconds


def cached_library_features(
    model: DiffLoRA, people: Sequence[int], run: Path, key: str
) -> tuple[Tensor, Tensor]:
    """Features of the library's people (n, N, C) and where a face was found (n, N), computed once."""
    digest = hashlib.sha256(f"{list(people)}{key}".encode()).hexdigest()[:16]
    path = run / f"library-features-{digest}.safetensors"
    if not path.is_file():
        features, valid = library_features(model, people)
        save_safetensors(path, {"features": features, "valid": valid})
    tensors, _ = load_safetensors(path)
    return tensors["features"], tensors["valid"]


def choose(
    curves: Mapping[str, Mapping[float, Measurement]],
) -> tuple[dict[str, float], float]:
    """Strength per row, and the regulariser of ridge regression, from validation people."""
    base = curves[BASE_ROW][0.0]
    strengths = {row: choose_strength(curve, base) for row, curve in curves.items() if set(curve) != {0.0}}
    best = max(REGULARISERS, key=lambda r: float(best_similarity(curves, strengths, ridge_name(r))))
    return {**strengths, "ridge": strengths[ridge_name(best)]}, best


def best_similarity(
    curves: Mapping[str, Mapping[float, Measurement]], strengths: Mapping[str, float], row: str
) -> Tensor:
    """Mean similarity of a row at its chosen strength."""
    return curves[row][strengths[row]].similarity.mean()


def evaluate(options: argparse.Namespace, command: str) -> None:
    """Validation, choice of strengths, test, report."""
    model = DiffLoRA.load(options.checkpoint, options.face_pack, world.IMAGE_ENCODER, options.device)
    base = BaseModel.load(options.base, options.device)
    faces = sorted(face_models(model)[0].folder.glob("*.onnx"))
    draws = base.fingerprint + weights_fingerprint(base.autoencoder)
    fingerprints = {  # who draws and who judges
        "validation": draws + digest_of(*faces, world.ATTRIBUTE_CLASSIFIER),
        "test": draws + digest_of(world.EVALUATION_RECOGNISER, world.ATTRIBUTE_CLASSIFIER),
    }
    library = load_library(options.loras)
    check_same_library(library, model)
    counts = {"validation": options.validation_people, "test": options.people}
    oracle = options.oracle or options.loras
    trained = trained_rows(model, options.loras, counts, oracle, options.started)
    files = {"regressor": options.regressor, "regressor_tuned": options.tuned_regressor}
    width = model.checkpoint.networks.config.mif.image_width
    regressors = {
        name: open_regressor(path, model, base.fingerprint, width)
        for name, path in files.items()
        if path is not None
    }
    say(f"controls from {len(library.people)} LoRAs")
    encoders = digest_of(*faces) + model.encoders.image_fingerprint
    features, valid = cached_library_features(model, library.people.tolist(), options.run, encoders)
    controls = Controls(library, features, valid, model.checkpoint.networks.config.mif.face_width)
    translation = Translation.fit(model, library.flat, features, valid)

    panel, _ = open_panel(model, "validation", options.validation_people, options.prompts)
    made = all_rows(
        model, base, controls, panel, trained["validation"], options.seed, translation, regressors
    )
    rows: dict[str, Tensor | None] = {BASE_ROW: None, **made.flat}
    everywhere = dict.fromkeys(rows, options.strengths)
    curves = measure_split("validation", rows, everywhere, options, fingerprints["validation"])
    strengths, regulariser = choose(curves)
    curves["ridge"] = curves[ridge_name(regulariser)]
    chosen_on = {name: curve_values(curve) for name, curve in curves.items() if name in LABELS}
    say(f"chosen on validation people: regulariser {regulariser:g}, strengths {strengths}")

    panel, encoding_seconds = open_panel(model, "test", options.people, options.prompts)
    made = all_rows(model, base, controls, panel, trained["test"], options.seed, translation, regressors)
    flat, seconds = made.flat, made.seconds
    flat["ridge"], seconds["ridge"] = flat[ridge_name(regulariser)], seconds[ridge_name(regulariser)]
    rows = {name: row for name, row in flat.items() if not name.startswith("ridge_")}
    rows = {BASE_ROW: None, TRUE_ROW: None, **rows}
    only = {name: [strength] for name, strength in strengths.items()}
    measured = measure_split("test", rows, only, options, fingerprints["test"])
    chosen = {name: curve[strengths.get(name, 0.0)] for name, curve in measured.items()}
    for name in set(FROM_PHOTO) & set(seconds):
        seconds[name] += encoding_seconds
    made_by = {
        "trained_lora": (oracle, "test"),
        "trained_library": (options.loras, "test"),
        "trained_one_photo": (options.loras, f"test{REFERENCE_SUFFIX}"),
        "trained_started": (options.started, "test"),
    }
    for name in made_by.keys() & rows.keys():
        if (trained_seconds := training_seconds(*made_by[name])) is not None:
            seconds[name] = trained_seconds

    judge = Judge.load()
    say("the base model alone, on many prompts")
    drawing = (options.following_prompts, options.picture_steps, options.picture_guidance, options.seed)
    digest = hashlib.sha256(f"{drawing}{fingerprints['test']}".encode()).hexdigest()[:16]
    path = options.run / "results" / f"following-{digest}.safetensors"
    follows = measure_prompt_following(base, judge, *drawing, path)
    summary = summarise(chosen, strengths, seconds, follows)
    shown = [first_photos(features, 1) for features in panel.features]
    say("people in other styles")
    loras = {
        name: LoraBatch(model.layout, model.shared_down, flat[name], strengths[name])
        for name in ("difflora_1", "trained_lora")
    }
    drawing = (options.picture_steps, options.picture_guidance, options.seed)
    summary["styles"], styles_sheet = measure_styles(base, judge, panel, loras, *drawing)
    summary["candidates"] = spread_of_candidates(model, shown, made.ranking, judge)
    summary["photo_to_lora"] = measure_in_a_process(options.checkpoint, options.face_pack, options.device)
    settings = {
        "people": options.people, "validation_people": options.validation_people, "prompts": options.prompts,
        "strengths": options.strengths, "picture_steps": options.picture_steps,
        "picture_guidance": options.picture_guidance, "seed": options.seed,
        "library": len(library.people), "ridge_regulariser": regulariser, "base_model": base.name,
        "base_model_fingerprint": base.fingerprint, "layout": model.layout.fingerprint,
        "parameters_per_lora": model.layout.num_parameters, "difflora_steps": model.recommended.num_steps,
        **{name: None if path is None else path.name for name, path in files.items()},
        **weights_of_likeness(options.started),
        "guidance_scale": model.recommended.guidance_scale, "noise_scale": model.recommended.noise_scale,
    }  # fmt: skip
    report = {
        "command": command,
        "machine": f"{machine()}, device {options.device}",
        "settings": settings,
        **summary,
        "validation": chosen_on,
    }
    sheet = draw_sheet(panel.photos, panel.scenes.phrases(), chosen)
    atomic_save(options.out / "images" / "evaluation.png", sheet.save)
    atomic_save(options.out / "images" / "styles.png", styles_sheet.save)
    draw_plot(report, options.out / "images" / "results.png")
    write_report(report, options.out, options.readme)


def weights_of_likeness(started: Path | None) -> dict[str, float]:
    """What the LoRAs trained from predictions were asked for; 0 twice is the base model's own loss alone."""
    config = {} if started is None else read_config(started)
    names = ("identity_weight", "portrait_weight")
    return {f"{name}_from_a_prediction": config.get(name, 0.0) for name in names}


def trained_rows(
    model: DiffLoRA, folder: Path, counts: Mapping[str, int], oracle: Path, started: Path | None
) -> dict[str, dict[str, Tensor]]:
    """Split -> row -> LoRAs trained on its people; those from one photo only if both splits have them.

    Args:
        model: whose library it is.
        folder: the library.
        counts: split -> people.
        oracle: library of LoRAs trained on many pictures of them, as well as we can.
        started: library whose training started from predictions; None leaves the row out.
    """
    rows = {s: {"trained_lora": loras_of(load_library(oracle, s), model, n, s)} for s, n in counts.items()}
    if oracle != folder:
        for split, count in counts.items():
            rows[split]["trained_library"] = loras_of(load_library(folder, split), model, count, split)
    if all((folder / f"{split}{REFERENCE_SUFFIX}").is_dir() for split in counts):
        for split, count in counts.items():
            library = load_library(folder, f"{split}{REFERENCE_SUFFIX}")
            rows[split]["trained_one_photo"] = loras_of(library, model, count, split, "--reference ")
    if started is not None:
        for split, count in counts.items():
            library = load_library(started, split)
            rows[split]["trained_started"] = loras_of(library, model, count, split, "--start CHECKPOINT ")
    return rows


def training_seconds(library: Path, split: str) -> float | None:
    """Seconds per person that training the LoRAs of a split took, by the metrics of make_loras, if any."""
    rows = [row for path in sorted((library / split).glob("metrics-*.jsonl")) for row in read_metrics(path)]
    if not rows:
        return None
    return statistics.median(row["seconds"] for row in rows) / read_config(library)["batch"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT, help="of DiffLoRA")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="of the checkpoint")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="pipeline folder")
    library_option(parser, "runs/loras")
    parser.add_argument(
        "--oracle", type=Path, help="library of the oracle, e.g. trained longer; by default the same one"
    )
    parser.add_argument("--started", type=Path, help="library by make_loras --start; without, no such row")
    parser.add_argument("--regressor", type=Path, help="what train_regressor wrote; without, no such row")
    parser.add_argument(
        "--tuned-regressor", type=Path, help="what tune_regressor wrote; without, no such row"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/evaluation"), help="folder of measurements")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument("--readme", type=Path, help="README whose table to renew, e.g. README.md")
    parser.add_argument("--people", type=int, default=128, help="test people")
    parser.add_argument("--validation-people", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument(
        "--following-prompts", type=int, default=1024, help="on which the base model alone is measured"
    )
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.75, 1.0, 1.25, 1.5])
    parser.add_argument("--picture-steps", type=int, default=12, help="of the base model's sampler")
    parser.add_argument(
        "--picture-guidance", type=float, default=world.PICTURE_GUIDANCE, help="of the base model as well"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Arguments, measure, report."""
    options = parse(arguments)
    torch.set_num_threads(1)  # as the workers: the waiting of a second thread is not work
    evaluate(options, shlex.join(["python", "-m", "training.evaluate", *arguments]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
