"""Measured memory and arithmetic, against what can be counted by hand."""

from dataclasses import replace

import pytest
import torch

from difflora.errors import DiffLoRAError
from training import preset_sizes, presets
from training.base_presets import MINI_SDXL
from training.preset_sizes import measure, peak_of, real_preset, table

pytest.importorskip("diffusers")
CPU = torch.device("cpu")


def test_peak_counts_what_is_held_at_once():
    def work():
        first = torch.ones(1000, 1000)  # 4 MB
        second = first + 1  # 8 MB at once
        del first
        return second.sum() + torch.ones(500, 500).sum()  # 5 MB

    _, peak = peak_of(work, CPU)
    assert 8e6 <= peak < 8.2e6


def test_report_of_a_small_preset(monkeypatch):
    small = replace(presets.preset("tiny"), base=MINI_SDXL, lora_library=presets.preset("sdxl").lora_library)
    monkeypatch.setitem(presets.PRESETS, "small", small)
    report = measure("small", torch.bfloat16, CPU)
    assert report["lora"]["modules"] == 560
    parts = report["parameters"]
    assert sum(parts[part] for part in ("mif", "dit", "prior", "lae_encoder", "lae_decoder")) == parts["all"]
    generation = report["generation"]
    # at least: the decoder's maps are one multiplication and addition for each of their numbers
    assert generation["gflops"] * 1e9 > 2 * small.networks.lae.token_width * report["lora"]["generated"]
    assert generation["stored_bytes"] > 2 * parts["all"]
    assert generation["peak_extra_bytes"] > 4 * report["lora"]["generated"]  # at least the LoRA itself
    text = table({"presets": {"small": report}, "command": "c", "machine": "m", "dtype": "bfloat16"})
    assert "560 modules" in text


def test_presets_without_a_published_base_model_are_refused():
    with pytest.raises(DiffLoRAError, match="use one of sd15, sdxl"):
        real_preset("synthetic")


def test_too_large_networks_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(preset_sizes, "measure", lambda *_: {"generation": {"total_bytes": 3 * 2**30}})
    with pytest.raises(DiffLoRAError, match="3072 MiB: choose smaller networks"):
        preset_sizes.main(["--presets", "sdxl", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
