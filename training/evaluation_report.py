"""The evaluation as people read it: JSON, tables in markdown and README, a sheet of pictures.

Letters: B people, K prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from difflora.candidates import NUM_CANDIDATES
from difflora.files import atomic_save
from difflora.refinement import RefinementConfig
from difflora.sheet import SheetRow, draw_grid, to_image
from training.evaluation_rows import FITTING_STEPS
from training.evaluation_scores import LAE_ROWS, MAX_ACCURACY_LOSS, Measurement
from training.evaluation_styles import MOST_PEOPLE

LABELS = {
    "base_model": "base model, no LoRA",
    "mean_lora": "mean LoRA of the library",
    "nearest_lora": "nearest LoRA of the library",
    "ridge": "ridge regression onto PCA coefficients",
    "mlp": "MLP onto PCA coefficients",
    "regressor": "end-to-end regressor, image loss",
    "regressor_tuned": "end-to-end regressor, likeness as well",
    "trained_one_photo": "LoRA trained on that one photo",
    "trained_library": "LoRA trained on the person as in the library",
    "lae_trained": "LoRA as in the library, through the LAE",
    "lae_fitted": "LoRA as in the library, through the LAE, latent fitted",
    "lae_started": "LoRA trained from a prediction, through the LAE",
    "difflora_1": "**DiffLoRA, one photo**",
    "difflora_best": f"DiffLoRA, one photo, best of {NUM_CANDIDATES}",
    "difflora_refined": "DiffLoRA, one photo, refined",
    "difflora_4": "DiffLoRA, four photos",
    "trained_lora": "LoRA trained on the person (oracle)",
    "trained_started": "LoRA trained from a prediction",
    "true_renders": "other renders of the person (ceiling)",
}
HEADINGS = {
    "base_model": "base model",
    "mean_lora": "mean LoRA",
    "nearest_lora": "nearest",
    "ridge": "ridge",
    "mlp": "MLP",
    "regressor": "regressor",
    "regressor_tuned": "regressor, likeness",
    "trained_one_photo": "trained on 1",
    "trained_library": "library",
    "lae_trained": "LAE(library)",
    "lae_fitted": "LAE, fitted",
    "lae_started": "LAE(started)",
    "difflora_1": "DiffLoRA",
    "difflora_best": f"best of {NUM_CANDIDATES}",
    "difflora_refined": "refined",
    "difflora_4": "DiffLoRA, 4",
    "trained_lora": "trained",
    "trained_started": "started",
    "true_renders": "true",
}
SHEET_PEOPLE = 10
LEAST_SHOWN = 0.55
"""Rows less alike, and the true renders, are left out of the right-hand plot, where they squeeze the rest."""
LABEL_GAP, LABEL_AWAY = 0.035, 0.025
"""Of its labels, as shares of height and width: between two of them, and from a label to its point."""
README_TABLE = r"(<!-- evaluation:.*?-->\n)(.*?)(<!-- /evaluation -->)"
PAGE = """# Results

Written by `{command}` on one machine ({machine}), with
[evaluation.json](evaluation.json): every number comes from there. Seconds are CPU seconds of one thread.

{table}
- *Identity similarity*: cosine between the evaluation recogniser's embedding of a generated picture and the
  normalised mean embedding of other true renders of that person. That recogniser is used for nothing else.
- *Judges*, that recogniser and the classifier, see pictures of 128 px at 64 px, where they learned to judge.
- *Gap closed*: (row - base model) / (trained LoRA - base model), with bootstrap standard error. Trained LoRAs
  are noisy, so that this can exceed 100 %.
- *Prompt accuracy*: part of the prompt's attributes (expression, pose, accessory, light, background, clothes)
  that a classifier finds in the picture. All prompts of this table ask for colour photos.
- *Base model*: on {following}
- *Strength*: the most alike on validation people, who are in neither training nor test, by the conditioning
  recogniser (the evaluation recogniser selects nothing), among those that cost at most {loss:.0%} of prompt
  accuracy. The regulariser of ridge regression is chosen the same way.
- *Best of n*: n LoRAs from different seeds; the conditioning recogniser keeps the one whose pictures look
  most like the photo. The seconds include drawing them.
- *Refined*: {refinement} gradient steps on the latent, with the base model's loss of that one photo and its
  caption, as the LoRA trained on that photo has it.
- All rows share prompts and noise, and all that see one photo see the same one.
{controls}
![Likeness with intervals, and likeness against prompt accuracy](images/results.png)

![Test people in rows, methods in columns](images/evaluation.png)

## More about the pictures
At the same strengths; in brackets the 95 % bootstrap interval over people.

{details}
- *Identity similarity* compares with a mean of true renders, which is steadier than any single photo and so
  gives larger numbers than the other two.
- *Other photos* is R-similarity (Meta-LoRA's R-FaceSim): the mean cosine with single photos of the person
  that the one-photo rows did not see. *Reference photo* is plain face similarity, with the photo that they
  saw: a method that copies this photo's pose and light gains there and not in the other two.
- *Diversity* of the pictures of one person: 1 - mean cosine of their image features (the world's CLIP tower)
  over all pairs. Prompts differ, so the base model and the true renders say how much is right; less means
  that the LoRA draws the same picture whatever the prompt. (LPIPS, which others use, needs a network that
  was trained on real pictures.)
{costs}
## Other styles
All photos are in colour, and so is all that the trained LoRA has seen (DiffLoRA has been trained on other
people's sketches as well); here the prompts ask for another style. {styles_count} of the test people, same
prompts, same strengths. The recogniser that judges has seen colour photos only, so that a true person in such
a style is no upper bound of the similarity.

{styles}

![The first people in both styles](images/styles.png)

## Differences of identity similarity, paired over people
With the 95 % bootstrap interval; the first one is ahead where it is above zero.

{comparisons}

## Strengths
On the validation people, who choose them; test people are measured at the chosen one only. Similarity by the
conditioning recogniser, whose numbers cannot be compared with those above, / prompt accuracy:

{curves}

## Targets
{promises}

## Settings
{settings}
"""


def plus_minus(value: Mapping[str, float] | None, percent: bool = False) -> str:
    """`.612 ± .014`, or percent."""
    if value is None:
        return ""
    mean, error = value["mean"], value["se"]
    mean = round(mean, 2) + 0.0 if percent else mean  # never -0%
    return f"{mean:.0%} ± {error:.0%}" if percent else f"{mean:.3f} ± {error:.3f}"


def interval(value: Mapping[str, float]) -> str:
    """`.612 [.590, .634]`."""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def labels(report: Mapping[str, Any]) -> dict[str, str]:
    """Labels of the rows that were measured, in the order of the tables."""
    return {name: label for name, label in LABELS.items() if name in report["rows"]}


def readme_table(report: Mapping[str, Any]) -> str:
    """The table of the README: rows at their chosen strengths."""
    lines = [
        "| | strength | identity similarity | gap closed | prompt accuracy | seconds per person |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in labels(report).items():
        row = report["rows"][name]
        strength = "" if row["strength"] is None else f"{row['strength']:g}"
        seconds = "" if row["seconds_per_person"] is None else f"{row['seconds_per_person']:.2g}"
        gap = "" if name in ("base_model", "true_renders") else plus_minus(row["gap_closed"], percent=True)
        lines.append(
            f"| {label} | {strength} | {plus_minus(row['identity_similarity'])} | {gap} "
            f"| {plus_minus(row['prompt_accuracy'], percent=True)} | {seconds} |"
        )
    size = "{people} people x {prompts} prompts".format(**report["settings"])
    lines.append(f"\n{size}; ± is the standard error over people, seconds are CPU time.")
    return "\n".join(lines) + "\n"


def curve_table(report: Mapping[str, Any]) -> str:
    """Every LoRA row at every strength, on validation people."""
    strengths = [f"{strength:g}" for strength in report["settings"]["strengths"]]
    lines = [f"| | {' | '.join(strengths)} |", f"|---|{'---|' * len(strengths)}"]
    for name, label in labels(report).items():
        curve = report["validation"].get(name, {})
        if set(strengths) <= set(curve):
            values = [curve[strength] for strength in strengths]
            cells = [f"{v['identity_similarity']:.3f} / {v['prompt_accuracy']:.0%}" for v in values]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def detail_table(report: Mapping[str, Any]) -> str:
    """What else was measured on the pictures."""
    lines = [
        "| | identity similarity | other photos | reference photo | diversity |",
        "|---|---|---|---|---|",
    ]
    for name, label in labels(report).items():
        row = report["rows"][name]
        numbers = [row[key] for key in ("identity_similarity", "r_similarity", "reference_similarity")]
        cells = [interval(value) for value in numbers]
        lines.append(f"| {label} | {' | '.join(cells)} | {row['diversity']['mean']:.3f} |")
    return "\n".join(lines) + "\n"


def control_notes(report: Mapping[str, Any]) -> str:
    """How the controls were trained, for those that are there."""
    notes = {
        "mlp": "- *MLP*: in weight space, as ridge; a tenth of the library's people say when to stop.",
        "regressor": "- *End-to-end regressor*: features -> coefficients of bases -> `lora_up` of all\n"
        "  modules, trained with the base model's own loss on pictures of rendered people.",
        "regressor_tuned": "- *Likeness as well*: that regressor, trained on with the loss and\n"
        "  the recognisers that DiffLoRA's corrections have, on the same people.",
        "trained_one_photo": "- *LoRA trained on that one photo*: as in the library, on what DiffLoRA sees.",
        "trained_library": "- *As in the library*: on the oracle's pictures, but not as long.",
        "trained_started": "- *From a prediction*: on the oracle's pictures, starting from what DiffLoRA\n"
        "  makes of the first four of them, at a smaller rate and not as long; for the likeness of face\n"
        "  and whole picture as well, with the weights under Settings.",
    }
    for name, (what, _) in LAE_ROWS.items():
        if name in report["rows"]:
            kept = interval(report["rows"][name]["kept_by_lae"])
            notes[name] = f"- *Through the LAE*, {what} keep {kept} of their gain."
    if "lae_trained" in notes:
        notes["lae_trained"] += (
            "\n  They were trained from zero, while the LAE has learned LoRAs that were trained from"
            "\n  predictions: so their latents are translated, by a linear map that the library's own people"
            "\n  have taught, from their LoRAs' latents to those that DiffLoRA predicts for them. The luck of"
            "\n  one training is lost on the way, so that more than the whole gain is possible."
        )
    if "lae_fitted" in notes:
        notes["lae_fitted"] += (
            f"\n  *Fitted*: {FITTING_STEPS} gradient steps move that latent until the decoded LoRA does what"
            "\n  the LoRA does on eight pictures that it draws itself."
        )
    return "".join(f"{note}\n" for name, note in notes.items() if name in report["rows"])


def following(report: Mapping[str, Any]) -> str:
    """How well the base model follows many prompts."""
    found = report["prompt_following"]
    attributes = [f"{name} {own:.0%} ({true:.0%})" for name, (own, true) in found["attributes"].items()]
    means = [f"{found[who]['mean']:.1%}" for who in ("base_model", "renderer")]
    return (
        f"{found['prompts']:,} other prompts, one picture each, {means[0]}; the renderer's own pictures "
        f"{means[1]}.\n  The share is {interval(found['share'])}. In brackets the renderer: "
        f"{', '.join(attributes)}."
    )


def styles_table(report: Mapping[str, Any]) -> str:
    """Likeness and accuracy in other styles."""
    lines = [
        "| | identity similarity | prompt accuracy | style | expression | pose | accessory |",
        "|---|---|---|---|---|---|---|",
    ]
    for style, rows in report["styles"].items():
        for name, row in rows.items():
            of = [f"{row['attributes'][key]:.0%}" for key in ("style", "expression", "pose", "accessory")]
            values = [interval(row["identity_similarity"]), plus_minus(row["prompt_accuracy"], percent=True)]
            lines.append(f"| {style}: {LABELS[name].strip('*')} | {' | '.join([*values, *of])} |")
    return "\n".join(lines)


def costs(report: Mapping[str, Any]) -> str:
    """What a LoRA costs, and how alike candidates are."""
    cost, candidates = report["photo_to_lora"], report["candidates"]
    return (
        f"- *Cost* of photo -> LoRA in a process of its own: {cost['seconds']:.2g} CPU seconds "
        f"({cost['first_seconds']:.2g} the first time, {cost['loading_seconds']:.2g} to load), peak memory "
        f"{cost['peak_mb']:.0f} MB,\n  of which {cost['libraries_mb']:.0f} MB are the libraries'.\n"
        f"- *Candidates* of best of {NUM_CANDIDATES}: two of one person have a mean cosine of "
        f"{interval(candidates['cosine_of_latents'])} as latents and of\n  "
        f"{interval(candidates['cosine_of_faces'])} as the faces that they draw from the same noise: 1 means "
        "that there is\n  nothing to choose from.\n"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """The whole of `docs/results.md`."""
    compared, settings = report["comparisons"].items(), report["settings"].items()
    lines = {
        "comparisons": [
            f"{spaced(name)}: {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]" for name, v in compared
        ],
        "promises": [f"[{'x' if kept else ' '}] {text}" for text, kept in report["targets"].items()],
        "settings": [f"{spaced(name)}: {value}" for name, value in settings],
    }
    return PAGE.format(
        command=report["command"],
        machine=report["machine"],
        table=readme_table(report),
        loss=MAX_ACCURACY_LOSS,
        curves=curve_table(report),
        details=detail_table(report),
        controls=control_notes(report),
        costs=costs(report),
        styles=styles_table(report),
        styles_count=min(MOST_PEOPLE, report["settings"]["people"]),
        following=following(report),
        refinement=RefinementConfig.num_steps,
        **{name: "\n".join(f"- {item}" for item in items) for name, items in lines.items()},
    )


def spaced(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def write_report(report: Mapping[str, Any], out: Path, readme: Path | None) -> None:
    """Write `evaluation.json` and `results.md` to a folder, and the table into the README."""
    text = json.dumps(report, indent=2) + "\n"
    texts = {out / "evaluation.json": text, out / "results.md": markdown(report)}
    if readme is not None:
        text, table = readme.read_text(encoding="utf-8"), readme_table(report)
        texts[readme] = re.sub(README_TABLE, lambda match: match[1] + table + match[3], text, flags=re.DOTALL)
    for path, text in texts.items():
        atomic_save(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))


def draw_sheet(photos: Tensor, phrases: list[list[str]], chosen: Mapping[str, Measurement]) -> Image.Image:
    """People in rows, methods in columns; person b shows prompt b modulo K.

    Args:
        photos: (B, 3, H, W) reference photos in [-1, 1].
        phrases: K lists of what the prompts say.
        chosen: row -> measurement at the chosen strength; shown in the order of `LABELS`.
    """
    rows = []
    shown = [name for name in LABELS if name in chosen]
    for index in range(min(SHEET_PEOPLE, len(photos))):
        pictures = [to_image(chosen[name].samples[index].float() / 127.5 - 1) for name in shown]
        label, *details = phrases[index % len(phrases)]
        rows.append(SheetRow(label, [to_image(photos[index]), *pictures], details))
    return draw_grid([["photo"], *([HEADINGS[name]] for name in shown)], rows, side=128, label_width=124)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Where labels go so that they are a gap apart and least moved, in squares: heights rise.

    Less their places' gaps, heights must not fall: isotonic regression, by pooling neighbours that do.
    """
    blocks: list[tuple[float, int]] = []  # mean and number of labels
    for place, height in enumerate(heights):
        blocks.append((height - place * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (upper, more), (lower, count) = blocks.pop(), blocks.pop()
            blocks.append(((upper * more + lower * count) / (more + count), more + count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + place * gap for place, mean in enumerate(means)]


def draw_plot(report: Mapping[str, Any], path: Path) -> None:
    """Likeness of every row with its interval, and likeness against prompt accuracy, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = {name: report["rows"][name] for name in labels(report)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), gridspec_kw={"width_ratios": [1.25, 1]})
    points: dict[bool, list[tuple[float, float, str, str]]] = {False: [], True: []}
    for place, (name, row) in enumerate(reversed(rows.items())):
        likeness, accuracy = row["identity_similarity"], row["prompt_accuracy"]
        ours = name.startswith("difflora")
        colour = "#c2410c" if ours else "#64748b"
        mean, low, high = (likeness[key] for key in ("mean", "low", "high"))
        left.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
        if LEAST_SHOWN < likeness["mean"] and name != "true_renders":
            point = (100 * accuracy["mean"], likeness["mean"])
            # best of n lies on the point of one photo, the oracle on that of a LoRA from a prediction
            right_side = (ours and name != "difflora_best") or name.endswith("_started")
            right.plot(*point, "o", color=colour)
            points[right_side].append((*point, HEADINGS[name], colour))
    right.margins(x=0.4)
    low, high = right.get_ylim()
    away, gap = LABEL_AWAY * (right.get_xlim()[1] - right.get_xlim()[0]), LABEL_GAP * (high - low)
    for right_side, some in points.items():
        some.sort(key=lambda point: point[1])
        heights = spread([point[1] for point in some], gap)
        right.set_ylim(low, max([right.get_ylim()[1], *(height + gap for height in heights)]))
        for (x, y, label, colour), height in zip(some, heights, strict=True):
            right.annotate(
                label, (x, y), (x + (away if right_side else -away), height), va="center",
                ha="left" if right_side else "right", fontsize=8, color=colour,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5},
            )  # fmt: skip
    names = [LABELS[name].strip("*") for name in reversed(rows)]
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("identity similarity, 95 % interval over people")
    right.set_xlabel("prompt accuracy, %")
    right.set_ylabel("identity similarity")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    atomic_save(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    plt.close(figure)
