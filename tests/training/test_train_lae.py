"""Training the LAE: it learns, it resumes exactly, what it saves can be loaded."""

from pathlib import Path

import pytest
import torch

from difflora.errors import CheckpointError
from difflora.layout import LoraLayout, ModuleSpec
from training import train_lae
from training.common import load_state, read_metrics, save_state
from training.presets import PRESETS, LaeTrainingConfig

LAYOUT = LoraLayout((ModuleSpec("a", 8, 30), ModuleSpec("b", 8, 60)), rank=2, alpha=2.0)
SIZES = PRESETS["tiny"].networks.lae


def library(count: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, LAYOUT.num_parameters, generator=generator)
    return 0.01 * torch.randn(count, 3, generator=generator) @ basis + 0.5


def test_it_learns_what_people_have_in_common(tmp_path: Path) -> None:
    config = LaeTrainingConfig(
        num_steps=100, batch_size=16, learning_rate=6e-3, warmup=10, ema_decay=0.9, input_noise=0.1
    )
    lae, normalisation = train_lae.train(library(), LAYOUT, SIZES, config, tmp_path)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 100
    assert last["train_r2"] > 0.6
    assert last["held_out_r2"] > 0.6  # three directions: nothing to memorise

    path = tmp_path / "lae.safetensors"
    train_lae.TrainedLae(lae, LAYOUT, normalisation, 0.1).save(path)
    loaded = train_lae.TrainedLae.load(path)
    flat = loaded.normalisation.normalise(library())
    torch.testing.assert_close(loaded.lae.decode(loaded.lae.encode(flat)), lae.decode(lae.encode(flat)))
    assert loaded.layout == LAYOUT

    state = load_state(path)
    state["lae"]["linear_path.compress.weight"] = state["lae"].pop("linear_path.basis")  # what it once was
    save_state(path, state)
    with pytest.raises(CheckpointError, match="another version of this package: run train_lae again"):
        train_lae.TrainedLae.load(path)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LaeTrainingConfig(num_steps=8, batch_size=4, warmup=2)
    whole, _ = train_lae.train(library(20), LAYOUT, SIZES, config, tmp_path / "whole")
    monkeypatch.setattr(train_lae, "SAVE_EVERY", 3)
    rate_at = train_lae.rate_at

    def killed(step: int, *rest: float) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return rate_at(step, *rest)

    monkeypatch.setattr(train_lae, "rate_at", killed)
    with pytest.raises(KeyboardInterrupt):
        train_lae.train(library(20), LAYOUT, SIZES, config, tmp_path / "killed")
    monkeypatch.setattr(train_lae, "rate_at", rate_at)
    resumed, _ = train_lae.train(library(20), LAYOUT, SIZES, config, tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize(("count", "kept"), [(2, 1), (10, 9), (100, 90)])
def test_somebody_is_always_held_out(count: int, kept: int) -> None:
    training, held_out = train_lae.split_library(count, 0.1)
    assert (training.stop, held_out.start, held_out.stop) == (kept, kept, count)


def test_mixup_is_a_convex_combination() -> None:
    flat = torch.eye(6)
    mixed = train_lae.augment(flat, LaeTrainingConfig(mixup=1.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(6))
    assert ((mixed >= 0) & (mixed <= 1)).all() and not torch.equal(mixed, flat)
    assert torch.equal(
        train_lae.augment(flat, LaeTrainingConfig(mixup=0.0), torch.Generator().manual_seed(0)), flat
    )
