"""What evaluation measures, and what follows from it.

Letters: B people, K prompts, n vectors, C their width. Standard errors are over people: pictures of one
person are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflora.files import load_safetensors, save_safetensors

MAX_ACCURACY_LOSS = 0.05
"""Points of prompt accuracy that a LoRA may cost: the strength is the most alike within this."""
ORACLE_TARGET, ACCURACY_TARGET, BASE_TARGET = 0.85, 0.02, 0.95
GAP_TARGETS = {
    "difflora_1": ("one photo has", 0.95),
    "difflora_best": ("best of eight has", 1.0),
    "difflora_4": ("four photos have", 0.98),
}
"""Row -> the target's words, and which part of the oracle's gain over the base model it has to have."""
LAE_TARGET = 0.98
LAE_ROWS = {
    "lae_trained": ("LoRAs of the library", ("trained_library", "trained_lora")),
    "lae_fitted": ("LoRAs of the library, as fitted latents,", ("trained_library", "trained_lora")),
    "lae_started": ("LoRAs trained from a prediction", ("trained_started",)),
}
"""Row -> what went through the LAE, and the first of these rows that there is holds it as it was."""
BOOTSTRAP_DRAWS = 2000
INTERVAL = (0.025, 0.975)
"""Of the bootstrap: 95 %."""
NUMBERS = ("similarity", "reference_similarity", "r_similarity", "diversity")
"""What is measured on every picture or person, beside the accuracies."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured on the pictures of one row at one strength.

    Args:
        similarity: (B, K) identity similarity: with the normalised mean of many true renders.
        reference_similarity: (B, K) with the one photo that DiffLoRA sees.
        r_similarity: (B, K) mean cosine with other single photos of the person.
        diversity: (B,) of the K pictures of one person.
        accuracy: attribute -> (B, K), 1 where the picture shows what the prompt said.
        samples: (B, 3, H, W) uint8, one picture of each person, for the sheet.
    """

    similarity: Tensor
    reference_similarity: Tensor
    r_similarity: Tensor
    diversity: Tensor
    accuracy: Mapping[str, Tensor]
    samples: Tensor

    @property
    def similarity_of_people(self) -> Tensor:
        """(B,) mean over prompts."""
        return self.similarity.mean(dim=1)

    @property
    def accuracy_of_people(self) -> Tensor:
        """(B,) mean over prompts and attributes."""
        return torch.stack(list(self.accuracy.values())).mean(dim=(0, 2))

    def save(self, path: Path) -> None:
        """Write `.safetensors`."""
        tensors = {f"accuracy.{name}": values for name, values in self.accuracy.items()}
        own = {name: getattr(self, name) for name in (*NUMBERS, "samples")}
        save_safetensors(path, {**own, **tensors})

    @classmethod
    def load(cls, path: Path) -> Measurement:
        """Read what `save` wrote."""
        tensors, _ = load_safetensors(path)
        own = {name: tensors.pop(name) for name in (*NUMBERS, "samples")}
        accuracy = {name.removeprefix("accuracy."): values for name, values in tensors.items()}
        return cls(**own, accuracy=accuracy)


RIVALS = ("mean_lora", "nearest_lora", "ridge", "mlp", "regressor", "regressor_tuned", "trained_one_photo")
"""What one photo has to beat."""
COMPARED = (
    *("mean_lora", "nearest_lora", "ridge", "mlp", "regressor", "regressor_tuned", "lae_trained"),
    *("trained_one_photo", "trained_lora", "trained_started"),
    *("difflora_best", "difflora_refined", "difflora_4"),
)
"""Rows that one-photo DiffLoRA is compared with, person by person."""
Curve = Mapping[float, Measurement]  # strength -> measurement


def with_error(values: Tensor) -> dict[str, float]:
    """Mean of (B,) values, its standard error, and its 95 % bootstrap interval over people."""
    error = values.std() / len(values) ** 0.5
    return rounded(values.mean(), error, values[resamples(len(values))].mean(dim=1))


def resamples(count: int) -> Tensor:
    """Bootstrap: (draws, count) numbers of people, the same for every row, so that rows stay paired."""
    return torch.randint(count, (BOOTSTRAP_DRAWS, count), generator=torch.Generator().manual_seed(0))


def rounded(mean: Tensor, error: Tensor, draws: Tensor) -> dict[str, float]:
    """JSON values of a mean, its error, and the interval that holds 95 % of bootstrap draws (draws,)."""
    low, high = draws.quantile(torch.tensor(INTERVAL, dtype=draws.dtype)).tolist()
    values = {"mean": float(mean), "se": float(error), "low": low, "high": high}
    return {name: round(value, 4) for name, value in values.items()}


def diversity(features: Tensor) -> Tensor:
    """1 - mean cosine of two different vectors: (..., K, C) -> (...); 0 if all point the same way."""
    return 1 - pairwise_cosine(features)


def pairwise_cosine(vectors: Tensor) -> Tensor:
    """Mean cosine over all pairs of different vectors: (..., n, C) -> (...), n >= 2.

    Pairs with a zero vector (a picture without a face) count 0.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)  # (..., n, C)
    count = unit.shape[-2]
    own = unit.square().sum(dim=(-2, -1))  # (...) the diagonal
    return (unit.sum(dim=-2).square().sum(dim=-1) - own) / (count * (count - 1))


def choose_strength(curve: Curve, base: Measurement) -> float:
    """The strength that is most alike among those that cost at most `MAX_ACCURACY_LOSS` of prompt accuracy.

    Args:
        curve: a method on validation people.
        base: the base model on the same people.

    Returns:
        The strength; if all cost more, the one that costs least.
    """
    least = float(base.accuracy_of_people.mean()) - MAX_ACCURACY_LOSS
    accuracy = {strength: float(m.accuracy_of_people.mean()) for strength, m in curve.items()}
    allowed = [strength for strength, value in accuracy.items() if value >= least]
    if not allowed:
        return max(accuracy, key=lambda strength: accuracy[strength])
    return max(allowed, key=lambda strength: float(curve[strength].similarity.mean()))


def gap_closed(row: Tensor, base: Tensor, oracle: Tensor) -> dict[str, float]:
    """(row - base) / (oracle - base) of mean similarities, with bootstrapped error and interval over people.

    Args:
        row: (B,) similarities of the people.
        base: (B,) of the base model.
        oracle: (B,) of the trained LoRA.
    """
    draws = resamples(len(row))  # (draws, B)
    ratios = (row - base)[draws].mean(dim=1) / (oracle - base)[draws].mean(dim=1)  # (draws,)
    return rounded((row - base).mean() / (oracle - base).mean(), ratios.std(), ratios)


def summarise(
    chosen: Mapping[str, Measurement],
    strengths: Mapping[str, float],
    seconds: Mapping[str, float],
    prompt_following: Mapping[str, Any],
) -> dict[str, Any]:
    """Rows, paired comparisons and which targets are met, as JSON values.

    Args:
        chosen: row -> measurement on test people, at the strength that validation people chose.
        strengths: row -> that strength; rows without a LoRA have none.
        seconds: row -> seconds per person.
        prompt_following: from `measure_prompt_following`.
    """
    people = {name: measurement.similarity_of_people for name, measurement in chosen.items()}  # (B,) each
    rows = {}
    for name, measurement in chosen.items():
        right = measurement.accuracy
        rows[name] = {
            "strength": strengths.get(name),
            "identity_similarity": with_error(people[name]),
            "r_similarity": with_error(measurement.r_similarity.mean(dim=1)),
            "reference_similarity": with_error(measurement.reference_similarity.mean(dim=1)),
            "diversity": with_error(measurement.diversity),
            "gap_closed": gap_closed(people[name], people["base_model"], people["trained_lora"]),
            "prompt_accuracy": with_error(measurement.accuracy_of_people),
            "prompt_accuracy_of": {key: round(float(values.mean()), 4) for key, values in right.items()},
            "seconds_per_person": seconds.get(name),
        }
    for name in LAE_ROWS.keys() & rows.keys():
        original = next(source for source in LAE_ROWS[name][1] if source in people)
        kept = gap_closed(people[name], people["base_model"], people[original])
        rows[name]["kept_by_lae"] = kept
    pairs = [("difflora_1", name) for name in COMPARED] + [
        ("difflora_refined", name) for name in ("regressor", "trained_one_photo", "trained_lora")
    ]
    pairs.append(("trained_started", "trained_lora"))
    comparisons = {
        f"{ours} - {name}": with_error(people[ours] - people[name])
        for ours, name in pairs
        if ours in people and name in people
    }
    follows = prompt_following["share"]["mean"] >= BASE_TARGET
    label = f"the base model follows prompts {BASE_TARGET:.0%} as well as the renderer"
    return {
        "rows": rows,
        "prompt_following": prompt_following,
        "comparisons": comparisons,
        "targets": {label: follows, **targets(rows, comparisons)},
    }


def candidate_spread(latents: Tensor, faces: Tensor) -> dict[str, dict[str, float]]:
    """How alike the candidates of one person are: mean cosine of two of them.

    Args:
        latents: (B, n, T * C) that they were decoded from.
        faces: (B, n, K, E) embeddings of the faces that they draw; the K noises are the same for all.
    """
    return {
        "cosine_of_latents": with_error(pairwise_cosine(latents)),
        "cosine_of_faces": with_error(pairwise_cosine(faces.transpose(1, 2)).mean(dim=1)),
    }


def curve_values(curve: Curve) -> dict[str, dict[str, float]]:
    """Strength -> mean similarity and accuracy."""
    return {
        f"{strength:g}": {
            "identity_similarity": round(float(measurement.similarity.mean()), 4),
            "prompt_accuracy": round(float(measurement.accuracy_of_people.mean()), 4),
        }
        for strength, measurement in curve.items()
    }


def targets(rows: Mapping[str, Any], comparisons: Mapping[str, Any]) -> dict[str, bool]:
    """Which targets are met; those about rows that were not measured are left out.

    Two standard errors are those of the paired differences over people.
    """
    ours, base, oracle = (rows[name] for name in ("difflora_1", "base_model", "trained_lora"))
    likeness, accuracy = "identity_similarity", "prompt_accuracy"
    reached = oracle[likeness]["mean"] / rows["true_renders"][likeness]["mean"]
    label = f"a LoRA trained on many pictures reaches {ORACLE_TARGET:.0%} of the true renders"
    met = {label: reached >= ORACLE_TARGET}
    for name, (label, share) in GAP_TARGETS.items():
        if name in rows:
            met[f"{label} {share:.0%} of that LoRA's gain"] = rows[name]["gap_closed"]["mean"] >= share
    for name, (what, _) in LAE_ROWS.items():
        if name in rows:
            label = f"{what} keep {LAE_TARGET:.0%} of their gain in the LAE"
            met[label] = rows[name]["kept_by_lae"]["mean"] >= LAE_TARGET
    for name in RIVALS:
        if (ahead := comparisons.get(f"difflora_1 - {name}")) is not None:
            label = name.replace("_", " ")
            met[f"one photo is ahead of {label} by two standard errors"] = ahead["mean"] > 2 * ahead["se"]
    if (rival := rows.get("trained_one_photo")) is not None:
        keeps = ours[accuracy]["mean"] > rival[accuracy]["mean"]
        met["and keeps more of the prompt than the LoRA trained on that photo"] = keeps
    lost = base[accuracy]["mean"] - ours[accuracy]["mean"]
    met[f"prompt accuracy within {ACCURACY_TARGET:.0%} of the base model"] = lost <= ACCURACY_TARGET
    return met
