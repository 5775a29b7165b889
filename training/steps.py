"""The training loop of the small world models: one loss per step, killable at any moment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from difflora.files import atomic_save
from training.common import (
    MetricsWriter,
    config_to_dict,
    load_state,
    open_run,
    polite_interruption,
    progress_bar,
    save_state,
    say,
)

Step = Callable[[torch.Generator, float], Tensor]
"""Makes the loss of one step from a generator and the share of training that is done, 0 .. 1."""
WARM_UP_STEPS = 50
GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class StepsConfig:
    """How ``run_steps`` trains.

    Args:
        num_steps: in all, over every start of the script.
        batch: pictures, or people, of one step; the step function reads it.
        learning_rate: peak of the cosine schedule of AdamW.
        seed: of the first weights and of every step's chance.
        weight_decay: of matrices and kernels; vectors have none.
    """

    num_steps: int
    batch: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.02


def run_steps(
    folder: Path, model: nn.Module, step: Step, config: StepsConfig, save_every: int = 100
) -> nn.Module:
    """Train with AdamW, a warm-up and a cosine rate, going on where an earlier run was killed.

    Each step's chance comes from its own number, so that a resumed run equals one that was never stopped.

    Args:
        folder: gets ``config.json``, ``state.safetensors`` and ``metrics.jsonl``; its name stands beside the
            bar.
        model: trained in place.
        step: makes the loss.
        config: how to train.
        save_every: steps between two saves.

    Returns:
        The model, in evaluation mode.

    Raises:
        SystemExit: after Ctrl-C, when everything is saved.
        FloatingPointError: the loss is not finite.
    """
    open_run(folder, config_to_dict(config))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))
    path = folder / "state.safetensors"
    done = 0
    if path.is_file():
        state = load_state(path)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    model.train()
    with (
        progress_bar(config.num_steps, folder.name, done) as bar,
        MetricsWriter(folder / "metrics.jsonl", resume_after=done) as metrics,
        polite_interruption() as interrupted,
    ):
        for number in range(done, config.num_steps):
            progress = number / config.num_steps
            rate = config.learning_rate * min(
                (number + 1) / WARM_UP_STEPS, 0.5 + 0.5 * math.cos(math.pi * progress)
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            loss = step(generator, progress)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{folder.name}: the loss is not finite at step {number}: lower the rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimiser.step()
            bar.update()
            last = number + 1 == config.num_steps
            if last or (number + 1) % 10 == 0:
                metrics.write(number + 1, loss=loss.item(), rate=rate)
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if last or interrupted() or (number + 1) % save_every == 0:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": number + 1}
                save_state(path, state)
            if interrupted() and not last:
                raise SystemExit(f"saved in {folder}: run the same command again to go on")
    return model.train(False)


def write_measures(folder: Path, measures: dict[str, float]) -> dict[str, float]:
    """Print what a stage achieved and keep it in ``metrics.json``."""
    text = json.dumps(measures, indent=1)
    say(f"{folder.name}: {text}")
    atomic_save(folder / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    return measures
