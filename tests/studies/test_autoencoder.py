"""Keeping some numbers, principal components, and the share of a gain."""

import torch

from difflora.layout import LoraLayout, init_shared_down
from studies.autoencoder import Group, keep_numbers, measure_components, measure_kept
from studies.autoencoder_report import draw_plot, tables
from studies.common import Gallery
from studies.libraries import Loras
from training.lora_library import Library


def test_only_the_chosen_numbers_are_left(generator):
    flat = torch.randn(3, 1000, generator=generator)
    kept = keep_numbers(flat, 0.1, None)
    assert ((kept != 0).sum(dim=1) == 100).all()
    least = torch.where(kept != 0, kept.abs(), torch.inf).amin(dim=1)  # (3,)
    assert (torch.where(kept == 0, flat.abs(), 0.0).amax(dim=1) <= least).all()
    chosen = keep_numbers(flat, 0.1, generator)
    assert ((chosen != 0).sum(dim=1) == 100).all()
    assert torch.equal(chosen[chosen != 0], flat[chosen != 0])
    overlap = ((chosen != 0) & (kept != 0)).sum() / 300
    assert overlap < 0.3  # a random tenth holds a tenth of the largest
    assert torch.equal(keep_numbers(flat, 1.0, None), flat)


def make_group(base, judge, folder, flat, layout):
    traits = torch.linspace(-1, 1, len(flat))[:, None]
    down = init_shared_down(layout)
    return Group(Loras(layout, down, flat), Gallery(base, judge, traits, 1, 2, 0, folder))


def test_a_share_of_the_gain(drawing_base, judge, tmp_path, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    flat = torch.randn(4, layout.num_parameters, generator=generator)
    group = make_group(drawing_base, judge, tmp_path, flat, layout)
    assert group.gain.abs().min() > 0
    assert group.kept(flat) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert group.kept(torch.zeros_like(flat))["mean"] == 0.0  # the base model itself
    rows = measure_kept(group)
    assert rows["0.5"]["largest"] != rows["0.5"]["random"]


def test_components_keep_what_lies_in_the_span_of_the_library(drawing_base, judge, tmp_path, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    basis = torch.randn(6, layout.num_parameters, generator=generator)
    inside = torch.randn(34, 6, generator=generator) @ basis
    outside = torch.randn(4, layout.num_parameters, generator=generator)
    library = Library(layout, init_shared_down(layout), inside[:30], torch.arange(30))
    groups = {
        "trained": make_group(drawing_base, judge, tmp_path, outside, layout),
        "predicted": make_group(drawing_base, judge, tmp_path, inside[30:], layout),
    }
    rows = measure_components("all", library, groups, (2, 64))
    assert list(rows) == ["pca_all_2", "pca_all_6"]  # six directions are all there are
    assert rows["pca_all_6"]["predicted"]["r2"] > 0.999
    assert abs(rows["pca_all_6"]["predicted"]["kept"]["mean"] - 1) < 0.01
    assert rows["pca_all_6"]["trained"]["r2"] < 0.2
    assert rows["pca_all_2"]["predicted"]["r2"] < 0.9


def test_report_shows_the_numbers(tmp_path):
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    kind = {"r2": 0.25, "kept": value, "kept_stronger": value, "kept_fitted": value}
    row = {"label": "default", "numbers": 256, "seconds": None, "trained": kind, "predicted": kind}
    ranks = {"x": {"label": "rank 1", "parameters": 10, "gain": value, "8": {"r2": 0.1, "kept": value}}}
    report = {
        "parameters": 2560,
        "variants": {"default": row},
        "components": {"pca_all_256": {**row, "label": "components", "seconds": 3.0}},
        "kept": {"0.1": {"largest": value, "random": value, "rescaled": value}},
        "ranks": ranks,
    }
    text = tables(report)
    assert "| default | 256 | 10x | 0.25 | 50% (40% to 60%) |" in text
    assert "| components | 256 |" in text and " | 3 |" in text
    assert "| 10% | 50% (40% to 60%) |" in text
    assert "| rank 1 | 10 | 0.500 (0.400 to 0.600) | 0.10; 50% (40% to 60%) |" in text
    assert "rank 1" not in tables({**report, "ranks": {}})
    bare = {**report, "variants": {}, "components": {}, "ranks": {}}  # as it is written first
    assert tables(bare).startswith("| numbers kept |")
    for number, shown in enumerate((bare, report)):
        draw_plot(shown).savefig(tmp_path / f"plot{number}.png")
    assert (tmp_path / "plot1.png").stat().st_size > (tmp_path / "plot0.png").stat().st_size > 5000
