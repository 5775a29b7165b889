"""State comes back exactly, runs go on only with the same settings, and Ctrl-C waits for the step."""

import json
import os
import signal
from dataclasses import dataclass

import pytest
import torch

from difflora.errors import CheckpointError, DiffLoRAError
from training.common import (
    MetricsWriter,
    config_from_dict,
    config_to_dict,
    load_state,
    open_run,
    plot_metrics,
    polite_interruption,
    read_config,
    read_metrics,
    save_state,
)


@dataclass(frozen=True)
class Settings:
    width: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)


def trained(steps, state=None):
    """A small run; from a state it goes on."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    done = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        done = state["step"]
    for _ in range(done, steps):
        loss = model(torch.randn(4, 3, generator=generator)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
        "step": steps,
    }


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    path = save_state(tmp_path / "state.safetensors", trained(5))
    resumed, whole = trained(9, load_state(path)), trained(9)
    for name in whole["model"]:
        assert torch.equal(resumed["model"][name], whole["model"][name])
    assert torch.equal(resumed["generator"], whole["generator"])


def test_state_keeps_structure_and_refuses_objects(tmp_path):
    state = {
        "a": [1, 2.5, None, True, "x"],
        "b": {0: (1, (2,)), "0": {}},
        "c": float("inf"),
        "t": torch.ones(2),
    }
    loaded = load_state(save_state(tmp_path / "s.safetensors", state))
    assert torch.equal(loaded.pop("t"), state.pop("t"))
    assert loaded == state
    with pytest.raises(TypeError, match="object"):
        save_state(tmp_path / "no.safetensors", {"x": object()})
    with pytest.raises(TypeError, match="keys"):
        save_state(tmp_path / "no.safetensors", {"x": {1.5: 2}})
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_run_folder_goes_on_only_with_the_same_settings(tmp_path):
    config = {"width": 3, "training": {"rate": 0.1, "seed": 0}}
    folder = open_run(tmp_path / "run", config)
    assert open_run(folder, config) == folder
    assert read_config(folder) == config
    with pytest.raises(CheckpointError, match=r"training.rate was 0\.1, now 0\.2"):
        open_run(folder, {"width": 3, "training": {"rate": 0.2, "seed": 0}})
    with pytest.raises(CheckpointError, match=r"not a run folder"):
        read_config(tmp_path)


def test_configs_round_trip_and_refuse_unknown_keys():
    settings = Settings(width=5)
    assert config_to_dict(settings) == {"width": 5, "rates": [0.1, 0.2]}
    assert config_from_dict(Settings, {"width": 5}) == settings
    with pytest.raises(CheckpointError, match="depth"):
        config_from_dict(Settings, {"depth": 1})


def test_metrics_drop_what_came_after_the_saved_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 6):
            writer.write(step, loss=1 / step if step != 2 else float("nan"))
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed in the middle of a line
    with MetricsWriter(path, resume_after=3) as writer:
        writer.write(4, loss=0.1)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["loss"] is None
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        for step in range(100):
            writer.write(step, loss=1 / (step + 1))
    picture = plot_metrics(tmp_path / "m.jsonl", tmp_path / "m.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DiffLoRAError, match="nothing to plot"):
        plot_metrics(tmp_path / "m.jsonl", tmp_path / "m.png", ("speed",))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_waits_once_then_stops(number):
    before = signal.getsignal(number)
    with polite_interruption() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before
