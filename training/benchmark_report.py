"""The numbers of `training.benchmark` as ratios with their targets, and as Markdown."""

import statistics
from collections.abc import Iterator
from typing import Any

# name -> (what it says, largest ratio that is good enough)
TARGETS = {
    "generation / regressor": ("generating a LoRA, ours over a HyperLoRA-shaped regressor", 1 / 2),
    "generation / training": ("generating a LoRA, ours over training one", 1 / 1000),
    "apply / core": ("applying a LoRA in ComfyUI, ours over core's LoraLoader", 1.1),
    "step merged / plain": ("a sampling step with a merged LoRA over one without", None),
}


def spread(values: list[float]) -> float:
    """Standard error of the median of repeated measurements, relative to it (1.253 sd / sqrt n)."""
    if len(values) < 2:
        return float("inf")
    error = 1.253 * statistics.stdev(values) / len(values) ** 0.5
    return error / statistics.median(values)


def ratios(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All ratios that the measured parts allow.

    A sampling step may differ by three standard errors: merged weights are weights, their cost is zero, and
    what is measured can only be the machine's noise.

    Returns:
        name of `TARGETS` -> value, target, noise (relative, one standard error), met.
    """
    found = {}
    for name, above, below in compared(report):
        noise = (spread(above["all"]) ** 2 + spread(below["all"]) ** 2) ** 0.5
        value = above["median"] / below["median"]
        target = TARGETS[name][1]
        limit = 1 + 3 * noise if target is None else target
        found[name] = {"value": value, "target": target, "noise": noise, "met": value <= limit}
    return found


def compared(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, what is measured, what it is measured against: of the parts that were run."""
    generation, host = report.get("generation"), report.get("host")
    if generation:
        ours = generation["ours"]["seconds"]
        yield "generation / regressor", ours, generation["regressor"]["seconds"]
        if training := report.get("training"):
            step, steps = training["seconds_per_step"], training["steps"]
            whole = {"median": step["median"] * steps, "all": [steps * value for value in step["all"]]}
            yield "generation / training", ours, whole
    if host:
        seconds = host["seconds"]
        yield "apply / core", seconds["apply.ours"], seconds["apply.core"]
        yield "step merged / plain", seconds["step.merged"], seconds["step.plain"]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# Speed, side by side in one run", ""]
    lines += [
        f"`{report['command'].strip()}` on {report['machine']}, {report['dtype']}, {report['threads']} "
    ]
    lines[-1] += f"threads. Random weights of size `{report['size']}`; medians, all single values are in"
    lines += ["[benchmark.json](benchmark.json).", "", "| | ratio | target | |", "|---|---|---|---|"]
    for name, numbers in report["ratios"].items():
        target = "1 within noise" if numbers["target"] is None else f"<= {numbers['target']:.4g}"
        verdict = "met" if numbers["met"] else "**missed**"
        value = f"{numbers['value']:.3g} ± {numbers['value'] * numbers['noise']:.1g}"
        lines.append(f"| {TARGETS[name][0]} | {value} | {target} | {verdict} |")
    lines += ["", "| | seconds |", "|---|---|"]
    for title, value in seconds_rows(report):
        lines.append(f"| {title} | {value:.4g} |")
    return "\n".join([*lines, ""])


def seconds_rows(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Title and median seconds of everything measured."""
    for name, numbers in report.get("generation", {}).items():
        title = f"{name}: {numbers['network_parameters'] / 1e6:.0f} M parameters make "
        yield title + f"{numbers['lora_parameters'] / 1e6:.2f} M of LoRA", numbers["seconds"]["median"]
    if training := report.get("training"):
        yield f"one LoRA training step at {training['picture_px']} px", training["seconds_per_step"]["median"]
        yield f"{training['steps']} of them ({training['extrapolated']})", training["seconds"]
    for name, numbers in report.get("host", {}).get("seconds", {}).items():
        yield f"in ComfyUI: {name}", numbers["median"]
