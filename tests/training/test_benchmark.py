"""The benchmark measures what it says; its part in ComfyUI is in tests/nodes/test_benchmark.py."""

import json

import pytest
import torch

from training import benchmark
from training.benchmark import interleave
from training.benchmark_report import TARGETS, ratios

pytest.importorskip("diffusers")


def test_functions_take_turns_and_none_is_always_first():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleave(functions, 3, torch.device("cpu"))
    assert calls == ["a", "b", *"ab", *"ba", *"ab"]  # one untimed call each
    assert [len(values) for values in times.values()] == [3, 3]


def times(*values):
    return {"median": sorted(values)[len(values) // 2], "all": list(values)}


def report(ours, regressor, step, merged, plain):
    host = {
        "apply.ours": times(1, 1, 1),
        "apply.core": times(1, 1, 1),
        "step.merged": merged,
        "step.plain": plain,
    }
    generation = {"ours": {"seconds": ours}, "regressor": {"seconds": regressor}}
    training = {"seconds_per_step": step, "steps": 100}
    return {"generation": generation, "training": training, "host": {"seconds": host}}


def test_ratios_by_hand():
    good = report(times(1, 1, 1), times(2, 2, 2), times(10, 10, 10), times(5, 6, 7), times(5, 6, 7))
    found = ratios(good)
    assert found.keys() == TARGETS.keys()
    assert found["generation / regressor"]["value"] == 0.5 and found["generation / regressor"]["met"]
    assert found["generation / training"]["value"] == 1 / 1000 and found["generation / training"]["met"]
    assert found["step merged / plain"]["met"]
    slow = report(times(1.2, 1.2, 1.2), times(2, 2, 2), times(10, 10, 10), times(9, 9, 9), times(6, 6, 6))
    assert [numbers["met"] for numbers in ratios(slow).values()] == [False, False, True, False]
    assert ratios({"generation": good["generation"]}).keys() == {"generation / regressor"}


def test_mini_run(tmp_path):
    options = "--size mini --parts generation training --rounds 2 --train-px 64 --measured-train-steps 2"
    benchmark.main([*options.split(), "--out", str(tmp_path)])
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    generation, training = report["generation"], report["training"]
    # narrow SDXL: both factors of 560 modules at rank 4 and 8
    assert 2 * generation["ours"]["lora_parameters"] == generation["regressor"]["lora_parameters"]
    assert len(training["seconds_per_step"]["all"]) == 2
    assert training["seconds"] == pytest.approx(100 * training["seconds_per_step"]["median"])
    text = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert options in text and "2 steps measured, times 100" in text


def test_without_comfyui(tmp_path):
    with pytest.raises(benchmark.DiffLoRAError, match=r"no ComfyUI at .*: give --comfyui"):
        benchmark.main(["--size", "mini", "--parts", "host", "--comfyui", str(tmp_path)])
