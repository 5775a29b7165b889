"""A resumed run equals one that was never stopped."""

import json

import pytest
import torch
from torch import nn

from difflora.errors import CheckpointError
from training.steps import StepsConfig, run_steps, write_measures


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def stepper(net: nn.Module, die_at: int | None = None):
    def step(generator: torch.Generator, progress: float) -> torch.Tensor:
        if die_at is not None and round(progress * 12) == die_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=generator)
        return (net(x)[:, 0] - x.sum(1)).square().mean()

    return step


def test_killed_and_resumed(tmp_path) -> None:
    config = StepsConfig(num_steps=12, batch=16, learning_rate=1e-2, seed=5)
    whole = model()
    run_steps(tmp_path / "whole", whole, stepper(whole), config, save_every=5)
    killed = model()
    with pytest.raises(KeyboardInterrupt):
        run_steps(tmp_path / "killed", killed, stepper(killed, die_at=8), config, save_every=5)
    resumed = model()
    run_steps(tmp_path / "killed", resumed, stepper(resumed), config, save_every=5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert not resumed.training


def test_another_run_is_not_continued(tmp_path) -> None:
    net = model()
    run_steps(tmp_path, net, stepper(net), StepsConfig(num_steps=2, batch=16, learning_rate=1e-2, seed=5))
    with pytest.raises(CheckpointError, match="other settings: seed was 5, now 6"):
        run_steps(tmp_path, net, stepper(net), StepsConfig(num_steps=2, batch=16, learning_rate=1e-2, seed=6))


def test_a_diverging_run_stops(tmp_path) -> None:
    net = model()
    config = StepsConfig(num_steps=2, batch=16, learning_rate=1e-2, seed=5)
    with pytest.raises(FloatingPointError, match="lower the rate"):
        run_steps(tmp_path, net, lambda generator, progress: net(torch.full((4, 4), torch.nan)).sum(), config)


def test_measures_are_kept(tmp_path) -> None:
    assert write_measures(tmp_path, {"recall": 0.5}) == {"recall": 0.5}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"recall": 0.5}
