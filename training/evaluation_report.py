"""The evaluation as people read it: JSON, tables in markdown and README, a sheet of pictures.

Letters: B people, K prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from difflora.candidates import NUM_CANDIDATES
from difflora.files import atomic_save
from difflora.sheet import SheetRow, draw_grid, to_image
from training.evaluation_scores import MAX_ACCURACY_LOSS, Measurement

LABELS = {
    "base_model": "base model, no LoRA",
    "mean_lora": "mean LoRA of the library",
    "nearest_lora": "nearest LoRA of the library",
    "ridge": "ridge regression onto PCA coefficients",
    "lae_trained": "trained LoRA through the LAE",
    "difflora_1": "**DiffLoRA, one photo**",
    "difflora_best": f"DiffLoRA, one photo, best of {NUM_CANDIDATES}",
    "difflora_4": "DiffLoRA, four photos",
    "trained_lora": "LoRA trained on the person (oracle)",
    "true_renders": "other renders of the person (ceiling)",
}
HEADINGS = {
    "base_model": "base model",
    "mean_lora": "mean LoRA",
    "nearest_lora": "nearest",
    "ridge": "ridge",
    "lae_trained": "LAE(trained)",
    "difflora_1": "DiffLoRA",
    "difflora_best": f"best of {NUM_CANDIDATES}",
    "difflora_4": "DiffLoRA, 4",
    "trained_lora": "trained",
    "true_renders": "true",
}
SHEET_PEOPLE = 10
README_TABLE = r"(<!-- evaluation:.*?-->\n)(.*?)(<!-- /evaluation -->)"
PAGE = """# Evaluation

Written by `{command}` on one machine ({machine}), with
[evaluation.json](evaluation.json): every number comes from there. Seconds are CPU seconds.

{table}
- *Identity similarity*: cosine between the evaluation recogniser's embedding of a generated picture and the
  normalised mean embedding of other true renders of that person. That recogniser is used for nothing else.
- *Gap closed*: (row - base model) / (trained LoRA - base model), with bootstrap standard error. Trained LoRAs
  are noisy, so that this can exceed 100 %.
- *Prompt accuracy*: part of the prompt's attributes (expression, pose, accessory, light, background, clothes)
  that a classifier finds in the picture.
- *Strength*: the most alike on validation people, who are in neither training nor test, by the conditioning
  recogniser (the evaluation recogniser selects nothing), among those that cost at most {loss:.0%} of prompt
  accuracy. The regulariser of ridge regression is chosen the same way.
- *Best of n*: n LoRAs from different seeds; the conditioning recogniser keeps the one whose pictures look
  most like the photo. The seconds include drawing them.
- All rows share prompts and noise. Nearest, ridge and DiffLoRA-one-photo see the same photo.

![Test people in rows, methods in columns](images/evaluation.png)

## Differences of identity similarity, paired over people
{comparisons}

## Strengths
Identity similarity / prompt accuracy on the test people:

{curves}

## Promised
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


def readme_table(report: Mapping[str, Any]) -> str:
    """The table of the README: rows at their chosen strengths."""
    lines = [
        "| | strength | identity similarity | gap closed | prompt accuracy | seconds per person |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in LABELS.items():
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
    """Every LoRA row at every strength."""
    strengths = [f"{strength:g}" for strength in report["settings"]["strengths"]]
    lines = [f"| | {' | '.join(strengths)} |", f"|---|{'---|' * len(strengths)}"]
    for name, label in LABELS.items():
        curve = report["rows"][name]["curve"]
        if set(strengths) <= set(curve):
            values = [curve[strength] for strength in strengths]
            cells = [f"{v['identity_similarity']:.3f} / {v['prompt_accuracy']:.0%}" for v in values]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole of `docs/evaluation.md`."""
    compared, settings = report["comparisons"].items(), report["settings"].items()
    lines = {
        "comparisons": [f"{spaced(name)}: {v['mean']:+.3f} ± {v['se']:.3f}" for name, v in compared],
        "promises": [f"[{'x' if kept else ' '}] {text}" for text, kept in report["floor"].items()],
        "settings": [f"{spaced(name)}: {value}" for name, value in settings],
    }
    return PAGE.format(
        command=report["command"],
        machine=report["machine"],
        table=readme_table(report),
        loss=MAX_ACCURACY_LOSS,
        curves=curve_table(report),
        **{name: "\n".join(f"- {item}" for item in items) for name, items in lines.items()},
    )


def spaced(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def write_report(report: Mapping[str, Any], out: Path, readme: Path | None) -> None:
    """Write `evaluation.json` and `evaluation.md` to a folder, and the table into the README."""
    text = json.dumps(report, indent=2) + "\n"
    texts = {out / "evaluation.json": text, out / "evaluation.md": markdown(report)}
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
        chosen: row -> measurement at the chosen strength, in the order of `LABELS`.
    """
    rows = []
    for index in range(min(SHEET_PEOPLE, len(photos))):
        pictures = [to_image(chosen[name].samples[index].float() / 127.5 - 1) for name in LABELS]
        label, *details = phrases[index % len(phrases)]
        rows.append(SheetRow(label, [to_image(photos[index]), *pictures], details))
    return draw_grid([["photo"], *([HEADINGS[name]] for name in LABELS)], rows, side=104, label_width=124)
