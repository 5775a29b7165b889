"""What the study concludes from rows whose answer is known."""

import json

import pytest

from studies.transformer_report import best_strength, sections, summarise_row, write_study
from studies.transformer_variants import VARIANTS

SETTINGS = {"whole": 1318, "trained": 320, "more_steps": 60}
ORIGIN = {"command": "python -m x", "machine": "a toaster", "settings": SETTINGS}


def row(value, **more):
    low = {"conditioning": [0.1, 0.1], "evaluation": [9.0, 9.0]}  # the other judge would choose it
    return {
        "curve": {"1": low, "2": {"conditioning": [0.5, 0.7], "evaluation": [value, value + 0.1]}},
        **more,
    }


@pytest.fixture
def rows():
    trained = {variant.name: row(index / 10) for index, variant in enumerate(VARIANTS)}
    asked = {"photos": (1, 2, 3, 4, 8), "guidance": (1, 1.5, 2, 3), "noise scale": (0, 0.5, 1)}
    asked |= {"steps, mean prediction": (1, 2, 4, 8, 16), "steps, noise 1": (1, 2, 4, 8, 16)}
    sampled = {f"{name}/{value:g}": row(value / 100) for name, values in asked.items() for value in values}
    spread = {"mean": 0.9, "se": 0.0, "low": 0.9, "high": 0.9}
    for count in (1, 2, 4, 8):
        more = {} if count == 1 else {"cosine_of_latents": spread, "cosine_of_faces": spread}
        sampled[f"best of/{count}"] = row(0.5, **more)
    return trained, sampled


def test_the_reported_judge_chooses_nothing():
    assert best_strength(row(0.3)["curve"]) == "2"
    value = summarise_row(row(0.3), row(0.2))
    assert value["strength"] == 2.0 and value["similarity"]["mean"] == pytest.approx(0.35)
    assert value["difference"]["mean"] == pytest.approx(0.1)
    assert value["difference"]["low"] == value["difference"]["high"] == pytest.approx(0.1)  # paired


def test_every_section_has_its_rows_and_its_baseline(rows):
    found = sections(SETTINGS, *rows)
    assert list(found["features"]) == ["face and image (MIF)", "without patches", "face only", "image only"]
    assert found["people"]["1318 predicted, 320 of them trained as well"]["difference"] is None
    assert "1318 predicted" in sections({**SETTINGS, "trained": 0}, *rows)["people"]
    assert found["steps, noise 1"]["8"]["difference"] is None
    assert found["steps, noise 1"]["16"]["difference"]["mean"] == pytest.approx(0.08)
    assert "60 steps more with the image loss" in found["loss"]


def test_variants_that_were_not_trained_are_left_out(rows, tmp_path):
    trained, sampled = rows
    write_study(tmp_path, ORIGIN, {"mixed": trained["mixed"], "v": trained["v"]}, sampled)
    text = (tmp_path / "study_transformer.md").read_text()
    assert "| v | 2 |" in text and "image only" not in text and "### What MIF sees" not in text
    write_study(tmp_path, ORIGIN, {}, sampled)
    assert "What the DiT predicts" not in (tmp_path / "study_transformer.md").read_text()


def test_the_page_keeps_what_was_written_by_hand(rows, tmp_path):
    write_study(tmp_path, ORIGIN, *rows)
    page = tmp_path / "study_transformer.md"
    text = page.read_text()
    assert "python -m x" in text and "| image only | 2 |" in text and "0.900 [0.900, 0.900]" in text
    page.write_text("By hand.\n" + text)
    write_study(tmp_path, ORIGIN, *rows)
    assert page.read_text() == "By hand.\n" + text
    assert json.loads((tmp_path / "study_transformer.json").read_text())["machine"] == "a toaster"
    assert (tmp_path / "images" / "study_transformer.png").stat().st_size > 10_000
