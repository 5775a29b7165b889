"""Pictures are judged once, intervals are those of people, and what was written by hand stays."""

import json

import pytest
import torch

from difflora.layout import LoraLayout, init_shared_down
from studies.common import Gallery, interval, shown, table, write_study
from training import evaluation_pictures
from training.evaluation_pictures import LoraBatch


@pytest.fixture
def gallery(drawing_base, judge, tmp_path, generator):
    traits = torch.rand(3, 5, generator=generator)
    return Gallery(drawing_base, judge, traits, 2, 2, 0, tmp_path)


@pytest.fixture
def loras(drawing_base, generator):
    layout = LoraLayout.from_model(drawing_base.denoiser, rank=2)
    flat = 0.5 * torch.randn(3, layout.num_parameters, generator=generator)
    return LoraBatch(layout, init_shared_down(layout), flat, 1.0)


def test_a_finished_measurement_is_not_drawn_again(gallery, loras, monkeypatch):
    first = gallery.similarity(loras)
    assert first.shape == (3,)
    monkeypatch.setattr(evaluation_pictures.LoraBatch, "__init__", None)  # nothing is built anew
    monkeypatch.setattr("studies.common.draw_people", None)
    assert torch.equal(gallery.similarity(loras), first)


def test_every_change_of_a_lora_is_another_measurement(gallery, loras):
    other = LoraBatch(loras.layout, loras.shared_down, loras.flat.flip(0), 1.0)
    stronger = LoraBatch(loras.layout, loras.shared_down, loras.flat, 1.5)
    down = LoraBatch(loras.layout, init_shared_down(loras.layout, 1), loras.flat, 1.0)
    digests = {gallery.digest(each) for each in (None, loras, other, stronger, down)}
    assert len(digests) == 5
    values = [gallery.similarity(each) for each in (None, loras, other, stronger)]
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_interval_is_that_of_a_mean():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=generator)
    found = interval(values)
    half = 1.96 * float(values.std()) / 20  # of a normal distribution
    assert found["mean"] == pytest.approx(float(values.mean()), abs=1e-4)
    assert found["low"] == pytest.approx(float(values.mean()) - half, abs=0.02)
    assert found["high"] == pytest.approx(float(values.mean()) + half, abs=0.02)


def test_interval_of_a_ratio_of_proportional_values_has_no_width():
    over = torch.tensor([1.0, 2.0, 5.0])
    assert interval(0.8 * over, over) == {"mean": 0.8, "low": 0.8, "high": 0.8}


def test_text():
    value = {"mean": 0.51234, "low": 0.4, "high": 0.6}
    assert shown(value) == "0.512 (0.400 to 0.600)"
    assert shown(value, percent=True) == "51% (40% to 60%)"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"


class Figure:
    def savefig(self, path, dpi):
        path.write_bytes(b"picture")


def test_tables_are_renewed_and_prose_stays(tmp_path):
    write_study(tmp_path, "x", {"a": 1}, "OLD TABLE", Figure())
    page = tmp_path / "study_x.md"
    page.write_text(page.read_text() + "\nWhat follows from it.\n")
    write_study(tmp_path, "x", {"a": 2}, "NEW TABLE", Figure())
    text = page.read_text()
    assert "NEW TABLE" in text and "OLD TABLE" not in text
    assert text.endswith("What follows from it.\n")
    report = json.loads((tmp_path / "study_x.json").read_text())
    assert report["a"] == 2 and "studies.x" in report["command"] and "torch" in report["machine"]
    assert (tmp_path / "images" / "study_x.png").read_bytes() == b"picture"
