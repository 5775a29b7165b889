"""What the studies share: LoRAs judged by their pictures, intervals over people, and the files of a report.

Letters: B people, K prompts, P parameters of one LoRA.
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.diffusion import draw_noise
from difflora.files import atomic_save, load_safetensors, save_safetensors
from difflora.synthetic.judge import Judge
from difflora.synthetic.people import sample_people
from training.common import machine, say
from training.evaluation_people import prompt_scenes
from training.evaluation_pictures import Likeness, LoraBatch, draw_people

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOOTSTRAP_DRAWS = 2000
TABLES = r"(<!-- tables -->\n).*?(<!-- /tables -->)"
EMPTY_PAGE = "# Study: {name}\n\n<!-- tables -->\n<!-- /tables -->\n\n![Plot](images/study_{name}.png)\n"
PROMPT_SPLIT = "test"
"""Whose prompts are drawn: no LoRA, network or setting of the studies was chosen by them."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Draws B people for K prompts, all from the same noise, and measures identity similarity.

    A finished measurement is kept under a digest of all that it depends on: a study that was stopped goes on.

    Args:
        base: the base model.
        judge: the evaluation recogniser, which selects nothing.
        traits: (B, traits) of the people.
        prompts: K.
        picture_steps: of the base model's sampler.
        seed: of the noise.
        cache: folder of finished measurements.
    """

    base: BaseModel
    judge: Likeness
    traits: Tensor
    prompts: int
    picture_steps: int
    seed: int
    cache: Path

    @classmethod
    def of_people(
        cls, base: BaseModel, judge: Judge, split: str, people: Sequence[int], options: argparse.Namespace
    ) -> "Gallery":
        """People of a split of the synthetic world; see `study_options` for the options."""
        traits = torch.cat([sample_people(split, index, 1) for index in people])  # (B, traits)
        return cls(
            base,
            judge,
            traits,
            options.prompts,
            options.picture_steps,
            options.seed,
            options.run / "pictures",
        )

    @cached_property
    def targets(self) -> Tensor:
        """What the people look like to the judge, (B, E)."""
        return self.judge.targets(self.traits)

    def similarity(self, loras: LoraBatch | None) -> Tensor:
        """Identity similarity of everybody's pictures, the mean over prompts: (B,).

        Args:
            loras: of the B people; None draws the base model.
        """
        path = self.cache / f"{self.digest(loras)}.safetensors"
        if not path.is_file():
            shape = (len(self.traits), self.prompts, *self.base.latent_shape)
            noise = draw_noise(shape, torch.Generator().manual_seed(self.seed), self.base.device)
            embeds = self.base.encode_prompts(
                prompt_scenes(PROMPT_SPLIT, self.prompts).prompts()
            )  # (K, T, W)
            pictures = draw_people(self.base, embeds, noise, self.picture_steps, loras)  # (B, K, 3, H, W)
            save_safetensors(path, {"similarity": self.judge.similarity(pictures, self.targets)})  # (B, K)
        return load_safetensors(path)[0]["similarity"].mean(dim=1)  # (B,)

    def digest(self, loras: LoraBatch | None) -> str:
        """Of everything that decides a measurement."""
        facts: list[object] = [self.base.fingerprint, self.prompts, self.picture_steps, self.seed]
        tensors = [self.traits]
        if loras is not None:
            facts += [loras.layout.fingerprint, loras.strength]
            tensors += [loras.flat, *(loras.shared_down or {}).values()]
        digest = hashlib.sha256(f"{facts}".encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:24]


def interval(values: Tensor, over: Tensor | None = None) -> dict[str, float]:
    """Mean of (B,) values, or ratio of two means, with its 95 % bootstrap interval over people.

    Args:
        values: (B,).
        over: (B,), to divide by.
    """
    over = torch.ones_like(values) if over is None else over
    draws = torch.randint(
        len(values), (BOOTSTRAP_DRAWS, len(values)), generator=torch.Generator().manual_seed(0)
    )
    ratios = values[draws].mean(dim=1) / over[draws].mean(dim=1)  # (draws,)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    mean = float(values.mean() / over.mean())
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def shown(value: Mapping[str, float], percent: bool = False) -> str:
    """An interval as text."""
    form = "{:.0%}" if percent else "{:.3f}"
    mean, low, high = (form.format(value[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def write_study(out: Path, name: str, report: Mapping[str, Any], tables: str, figure: "Figure") -> None:
    """Write `study_<name>.json` and `images/study_<name>.png`, and renew the tables of `study_<name>.md`.

    What is written around the tables by hand stays as it is.

    Args:
        out: `docs`.
        name: of the study.
        report: all numbers, as JSON values.
        tables: Markdown.
        figure: the plot.
    """
    command = shlex.join(["python", "-m", f"studies.{name}", *sys.argv[1:]])
    whole = {"command": command, "machine": machine(), **report}
    content = json.dumps(whole, indent=1) + "\n"
    page = out / f"study_{name}.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else EMPTY_PAGE.format(name=name)
    origin = f"`{command}` on {whole['machine']}; all numbers: [study_{name}.json](study_{name}.json)."
    text = re.sub(
        TABLES, lambda found: f"{found[1]}\n{origin}\n\n{tables.strip()}\n\n{found[2]}", text, flags=re.DOTALL
    )
    atomic_save(out / f"study_{name}.json", lambda path: path.write_text(content, encoding="utf-8"))
    atomic_save(page, lambda path: path.write_text(text, encoding="utf-8"))
    atomic_save(out / "images" / f"study_{name}.png", lambda path: figure.savefig(path, dpi=110))
    say(f"written: {page}")


def study_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Options that every study has."""
    parser.add_argument("--run", type=Path, default=Path(f"runs/study_{name}"), help="work folder, resumed")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument("--held-out", type=int, default=16, help="people who are drawn and judged")
    parser.add_argument("--prompts", type=int, default=6, help="pictures of each person")
    parser.add_argument("--picture-steps", type=int, default=8, help="of the base model's sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
