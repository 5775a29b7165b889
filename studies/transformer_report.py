"""The study of MIF and DiT as people read it: JSON, tables, a plot.

A row's strength is the one at which the conditioning recogniser finds it most alike; what is shown is the
evaluation recogniser's similarity there, with its 95 % bootstrap interval over people.
Letter: B people.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from difflora.files import atomic_save
from studies.transformer_variants import VARIANTS
from training.common import say
from training.evaluation_report import interval
from training.evaluation_scores import with_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "features": "What MIF sees",
    "prediction": "What the DiT predicts",
    "people": "Training identities",
    "loss": "Weight space alone, or with the image loss",
    "photos": "Photos of the person",
    "guidance": "Guidance",
    "steps, mean prediction": "Sampler steps from zero noise",
    "steps, noise 1": "Sampler steps from noise",
    "noise scale": "Noise scale",
    "best of": "Best of K, noise scale 1",
}
BASELINES = {
    "guidance": "1",
    "steps, mean prediction": "8",
    "steps, noise 1": "8",
    "photos": "1",
    "noise scale": "0",
}
"""What the rows of a section are compared with; elsewhere the section's first row."""
TABLES = r"(<!-- tables -->\n).*?(<!-- /tables -->)"
EMPTY_PAGE = "# Study: MIF and DiT\n\n<!-- tables -->\n<!-- /tables -->\n"


def best_strength(curve: Mapping[str, Any]) -> str:
    """The strength that the conditioning recogniser finds most alike."""
    return max(curve, key=lambda strength: sum(curve[strength]["conditioning"]))


def summarise_row(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a row, and its difference to the section's baseline, person by person."""
    strength, other = best_strength(row["curve"]), best_strength(baseline["curve"])
    own = {name: torch.tensor(values) for name, values in row["curve"][strength].items()}  # (B,) each
    reference = torch.tensor(baseline["curve"][other]["evaluation"])  # (B,)
    means = {
        at: {name: round(sum(values) / len(values), 4) for name, values in judged.items()}
        for at, judged in row["curve"].items()
    }
    return {
        "strength": float(strength),
        "similarity": with_error(own["evaluation"]),
        "conditioning": with_error(own["conditioning"]),
        "difference": None if row is baseline else with_error(own["evaluation"] - reference),
        "mean_curve": means,
        **{key: value for key, value in row.items() if key != "curve"},
    }


def sections(
    settings: Mapping[str, Any], trained: Mapping[str, Any], sampled: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Section -> label -> summary."""
    trained_too = f", {settings['trained']} of them trained as well" if settings["trained"] else ""
    words = {"whole": settings["whole"], "trained": trained_too, "more": settings["more_steps"]}
    raw: dict[str, dict[str, Any]] = {}
    for variant in [variant for variant in VARIANTS if variant.name in trained]:
        for section, label in variant.sections.items():
            raw.setdefault(section, {})[label.format(**words)] = trained[variant.name]
    for name, row in sampled.items():
        section, label = name.split("/")
        raw.setdefault(section, {})[label] = row
    summary = {}
    for section, rows in raw.items():
        baseline = rows[BASELINES.get(section, next(iter(rows)))]
        summary[section] = {label: summarise_row(row, baseline) for label, row in rows.items()}
    return summary


def tables(report: Mapping[str, Any]) -> str:
    """All sections in markdown."""
    parts = []
    for section, title in TITLES.items():
        rows = report["sections"].get(section, {})
        if len(rows) < 2:  # nothing to compare
            continue
        spread = section == "best of"
        header = ["", "strength", "identity similarity", "difference"]
        header += ["cosine of two latents", "cosine of their faces"] if spread else []
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for label, row in rows.items():
            cells = [label, f"{row['strength']:g}", interval(row["similarity"]), signed(row["difference"])]
            if spread:
                keys = ("cosine_of_latents", "cosine_of_faces")
                cells += [interval(row[key]) if key in row else "" for key in keys]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append(f"### {title}\n" + "\n".join(lines))
    return "\n\n".join(parts)


def signed(value: Mapping[str, float] | None) -> str:
    """`+.012 [-.003, +.020]`, empty for the baseline."""
    return "" if value is None else f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def draw(report: Mapping[str, Any]) -> "Figure":
    """Six small plots: what was trained above, how the shipped checkpoint is sampled below."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    chosen = {section: report["sections"].get(section, {}) for section in TITLES}
    dots(axes[0], "what MIF sees", chosen["features"])
    people = sorted((int(re.match(r"\d+", label)[0]), row) for label, row in chosen["people"].items())  # type: ignore[index]
    lines(axes[1], "training identities", {"": people}, log=True)
    dots(axes[2], "the DiT: prediction and loss", {**chosen["prediction"], **chosen["loss"]})
    lines(axes[3], "photos", {"": numbered(chosen["photos"])})
    steps = {
        "zero noise": numbered(chosen["steps, mean prediction"]),
        "noise": numbered(chosen["steps, noise 1"]),
    }
    lines(axes[4], "sampler steps", steps, log=True)
    several = {"best of K": numbered(chosen["best of"]), "guidance": numbered(chosen["guidance"])}
    lines(axes[5], "best of K (noise 1), guidance", several)
    for place in (1, 3, 4, 5):
        axes[place].set_ylabel("identity similarity")
    return figure


def numbered(rows: Mapping[str, Any]) -> list[tuple[float, Any]]:
    """Rows whose labels are numbers, in order."""
    return sorted(((float(label), row) for label, row in rows.items()), key=lambda pair: pair[0])


def errors(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far the interval reaches below and above."""
    values = [row["similarity"] for row in rows]
    below, above = ([v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values])
    return [v["mean"] for v in values], [below, above]


def dots(axes: Any, title: str, rows: Mapping[str, Any]) -> None:  # noqa: ANN401 (matplotlib's)
    """One dot per row."""
    means, reach = errors(list(rows.values()))
    axes.errorbar(means, range(len(rows)), xerr=reach, fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), [textwrap.fill(label, 24) for label in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="identity similarity")
    axes.margins(y=0.15)
    axes.grid(axis="x", alpha=0.3)


def lines(
    axes: Any,  # noqa: ANN401 (matplotlib's)
    title: str,
    curves: Mapping[str, Sequence[tuple[float, Any]]],
    log: bool = False,
) -> None:
    """One line per name over a number."""
    for name, points in curves.items():
        means, reach = errors([row for _, row in points])
        axes.errorbar([x for x, _ in points], means, yerr=reach, marker="o", capsize=3, label=name)
    if log:
        axes.set_xscale("log")
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if len(curves) > 1:
        axes.legend()
    axes.set_title(title)


def write_study(
    out: Path, origin: Mapping[str, Any], trained: Mapping[str, Any], sampled: Mapping[str, Any]
) -> None:
    """Write `study_transformer.json`, the tables of `study_transformer.md`, `images/study_transformer.png`.

    What is written around the tables by hand stays as it is.

    Args:
        out: `docs`.
        origin: command, machine, settings.
        trained: variant -> row.
        sampled: section/label -> row.
    """
    report = {**origin, "sections": sections(origin["settings"], trained, sampled)}
    text = json.dumps(report, indent=1) + "\n"
    page = out / "study_transformer.md"
    before = page.read_text(encoding="utf-8") if page.is_file() else EMPTY_PAGE
    source = (
        f"`{report['command']}` on one machine ({report['machine']});\nall numbers: "
        "[study_transformer.json](study_transformer.json)."
    )
    after = re.sub(
        TABLES, lambda found: f"{found[1]}{source}\n\n{tables(report)}\n{found[2]}", before, flags=re.DOTALL
    )
    figure = draw(report)
    atomic_save(out / "study_transformer.json", lambda path: path.write_text(text, encoding="utf-8"))
    atomic_save(page, lambda path: path.write_text(after, encoding="utf-8"))
    atomic_save(out / "images" / "study_transformer.png", lambda path: figure.savefig(path, dpi=100))
    say(f"written: {page}")
