"""What evaluation concludes from measurements, on measurements whose answer is known."""

import json

import pytest
import torch

from training.evaluation_report import (
    LABELS,
    SHEET_PEOPLE,
    draw_sheet,
    markdown,
    readme_table,
    spread,
    write_report,
)
from training.evaluation_scores import (
    Measurement,
    candidate_spread,
    choose_strength,
    curve_values,
    diversity,
    gap_closed,
    summarise,
    with_error,
)

PEOPLE, PROMPTS, STRENGTHS = 6, 4, (0.5, 1.0, 2.0)


def measurement(similarity, accuracy, spread=0.0):
    people = torch.linspace(-spread, spread, PEOPLE)[:, None].expand(PEOPLE, PROMPTS)
    right = torch.zeros(PEOPLE, PROMPTS)
    right[:, : round(accuracy * PROMPTS)] = 1
    samples = torch.zeros(PEOPLE, 3, 64, 64, dtype=torch.uint8)
    similarity = similarity + people
    diversity = torch.full((PEOPLE,), 0.2)
    return Measurement(
        similarity, similarity - 0.2, similarity - 0.1, diversity, {"pose": right, "light": right}, samples
    )


@pytest.fixture
def report():
    level = {"mean_lora": 0.2, "nearest_lora": 0.3, "ridge": 0.5, "lae_trained": 0.55, "difflora_1": 0.6}
    level |= {"mlp": 0.5, "regressor": 0.6, "regressor_tuned": 0.59, "trained_one_photo": 0.4}
    level |= {"trained_started": 0.7, "lae_started": 0.69, "lae_fitted": 0.595, "trained_library": 0.6}
    level |= {"difflora_best": 0.62, "difflora_refined": 0.625, "difflora_4": 0.63, "trained_lora": 0.65}
    chosen = {"base_model": measurement(0.05, 1.0, 0.01), "true_renders": measurement(0.9, 1.0, 0.01)}
    chosen |= {name: measurement(value, 1.0, 0.02) for name, value in level.items()}
    exactly = {"mean": 0.9, "se": 0.0, "low": 0.9, "high": 0.9}
    following = {"prompts": 2000, "attributes": {"pose": [0.812, 0.9]}}
    following |= dict.fromkeys(("base_model", "renderer", "share"), exactly)
    summary = summarise(chosen, dict.fromkeys(level, 1.0), {"difflora_1": 0.1}, following)
    curves = {
        name: curve_values({s: measurement(value * min(s, 1), 1.0, 0.02) for s in STRENGTHS})
        for name, value in level.items()
    }
    settings = {"people": PEOPLE, "prompts": PROMPTS, "strengths": list(STRENGTHS)}
    cost = {"seconds": 0.2, "first_seconds": 0.3, "loading_seconds": 1.0, "peak_mb": 700, "libraries_mb": 400}
    spread = candidate_spread(torch.ones(PEOPLE, 3, 4), torch.ones(PEOPLE, 3, 2, 4))
    attributes = dict.fromkeys(("style", "expression", "pose", "accessory"), 0.75)
    drawn = {"identity_similarity": exactly, "prompt_accuracy": exactly, "attributes": attributes}
    styles = {"sepia": dict.fromkeys(("base_model", "difflora_1", "true_renders"), drawn)}
    extra = {"photo_to_lora": cost, "candidates": spread, "styles": styles}
    return {
        "command": "python -m x",
        "machine": "a toaster",
        "settings": settings,
        **summary,
        **extra,
        "validation": curves,
    }


def test_strength_is_the_most_alike_that_keeps_the_prompts():
    base = measurement(0.0, 1.0)
    curve = {0.5: measurement(0.3, 1.0), 1.0: measurement(0.5, 1.0), 2.0: measurement(0.8, 0.5)}
    assert choose_strength(curve, base) == 1.0
    costly = {1.0: measurement(0.5, 0.25), 2.0: measurement(0.9, 0.0)}
    assert choose_strength(costly, base) == 1.0  # the one that costs least


def test_gap_closed_is_the_ratio_of_gaps():
    base, oracle = torch.zeros(5), torch.full((5,), 0.8)
    exact = gap_closed(torch.full((5,), 0.6), base, oracle)
    assert exact == {"mean": 0.75, "se": 0.0, "low": 0.75, "high": 0.75}
    noisy = gap_closed(torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8]), base, oracle)
    # plug-in: the standard error of the numerator over a constant denominator, without the n - 1 correction
    assert noisy["se"] == pytest.approx(0.1414 / 5**0.5 / 0.8, rel=0.1)


def test_standard_error_is_over_people():
    value = with_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (value["mean"], value["se"]) == (2.5, 0.6455)  # sqrt(5/3) / 2


def test_the_interval_is_the_bootstraps_over_people(generator):
    people = torch.randn(400, generator=generator)
    value = with_error(people)
    # with many people the bootstrap of a mean is normal: 1.96 standard errors each way
    assert value["low"] == pytest.approx(value["mean"] - 1.96 * value["se"], abs=0.01)
    assert value["high"] == pytest.approx(value["mean"] + 1.96 * value["se"], abs=0.01)


def test_diversity_is_one_minus_the_mean_cosine_of_pairs(generator):
    features = torch.randn(3, 5, 7, generator=generator)
    unit = torch.nn.functional.normalize(features, dim=-1)
    pairs = [[float(own[i] @ own[j]) for i in range(5) for j in range(i)] for own in unit]
    wanted = torch.tensor([1 - sum(cosines) / len(cosines) for cosines in pairs])
    assert torch.allclose(diversity(features), wanted, atol=1e-5)
    assert torch.allclose(diversity(torch.ones(1, 4, 7)), torch.zeros(1), atol=1e-6)  # one, four times


def test_candidates_are_compared_picture_by_picture():
    latents = torch.eye(4).expand(2, 4, 4)  # nothing in common
    faces = torch.eye(3).expand(2, 4, 3, 3)  # each candidate draws the same three faces, all different
    spread = candidate_spread(latents, faces)
    assert spread["cosine_of_latents"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert spread["cosine_of_faces"]["mean"] == pytest.approx(1.0, abs=1e-6)


def test_paired_differences_do_not_see_what_people_share(report):
    difference = report["comparisons"]["difflora_1 - ridge"]
    nothing = pytest.approx(0.0, abs=1e-4)
    tenth = pytest.approx(0.1, abs=1e-4)
    assert difference == {"mean": tenth, "se": nothing, "low": tenth, "high": tenth}
    missed = {text for text, met in report["targets"].items() if not met}
    assert missed == {
        "the base model follows prompts 95% as well as the renderer",  # .9
        "a LoRA trained on many pictures reaches 85% of the true renders",  # .65 of .90
        "one photo has 95% of that LoRA's gain",  # .55 of .60
        "best of eight has 100% of that LoRA's gain",
        "four photos have 98% of that LoRA's gain",
        "LoRAs of the library keep 98% of their gain in the LAE",  # .5 of .55
        "one photo is ahead of regressor by two standard errors",  # as good
        "and keeps more of the prompt than the LoRA trained on that photo",  # likewise
    }
    assert report["targets"]["one photo is ahead of ridge by two standard errors"]
    assert report["targets"]["LoRAs trained from a prediction keep 98% of their gain in the LAE"]
    kept = report["rows"]["lae_started"]["kept_by_lae"]["mean"]
    assert kept == pytest.approx(0.64 / 0.65, abs=1e-3)  # of the gain of .7 over .05
    assert report["rows"]["lae_trained"]["kept_by_lae"]["mean"] == pytest.approx(0.5 / 0.55, abs=1e-3)
    assert report["rows"]["difflora_1"]["gap_closed"]["mean"] == pytest.approx(0.55 / 0.6, abs=1e-3)


def test_a_measurement_survives_its_file(tmp_path):
    before = measurement(0.3, 0.5, 0.1)
    before.save(tmp_path / "m.safetensors")
    after = Measurement.load(tmp_path / "m.safetensors")
    for name in ("similarity", "reference_similarity", "r_similarity", "diversity"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert list(after.accuracy) == sorted(before.accuracy)
    assert torch.equal(after.accuracy_of_people, before.accuracy_of_people)


def test_report_and_readme_show_every_row(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- evaluation: x -->\nold\n<!-- /evaluation -->\nb\n")
    write_report(report, tmp_path, readme)
    write_report(report, tmp_path, readme)  # a second time changes nothing
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert readme.read_text() == f"a\n<!-- evaluation: x -->\n{readme_table(report)}<!-- /evaluation -->\nb\n"
    for text in (readme_table(report), markdown(report)):
        assert all(label in text for label in LABELS.values())
    assert "python -m x" in markdown(report)
    assert "700 MB" in markdown(report) and "0.500 [" in markdown(report)
    assert "| sepia: DiffLoRA, one photo | 0.900 [0.900, 0.900] | 90% ± 0% | 75% |" in markdown(report)
    assert "2,000 other prompts" in markdown(report) and "pose 81% (90%)" in markdown(report)


def test_rows_that_were_not_measured_are_left_out(report):
    for name in ("regressor", "regressor_tuned", "trained_one_photo"):
        del report["rows"][name]
        del report["comparisons"][f"difflora_1 - {name}"]
    for name in ("lae_started", "lae_fitted", "lae_trained"):
        del report["rows"][name]
    for text in (readme_table(report), markdown(report)):
        assert LABELS["regressor"] not in text and LABELS["trained_one_photo"] not in text
        assert "End-to-end" not in text and "Likeness as well" not in text and "Through the LAE" not in text
        assert LABELS["mlp"] in text


def test_sheet_has_a_row_per_person_and_a_column_per_method():
    chosen = dict.fromkeys(LABELS, measurement(0.1, 1.0))
    photos = torch.zeros(PEOPLE, 3, 64, 64)
    sheet = draw_sheet(photos, [["smiling", "red background"]] * PROMPTS, chosen)
    assert PEOPLE <= SHEET_PEOPLE
    assert sheet.height > PEOPLE * 104 and sheet.width > (len(LABELS) + 1) * 104


def test_labels_are_a_gap_apart_and_move_no_further_than_they_must():
    assert spread([], 0.1) == []
    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]  # nothing touches
    two = spread([0.1, 0.3, 0.34, 0.8], 0.1)
    assert two == pytest.approx([0.1, 0.27, 0.37, 0.8])
    pushed = spread([0.0, 0.3, 0.3, 0.3], 0.2)  # three together reach down to the first
    assert pushed == pytest.approx([-0.075, 0.125, 0.325, 0.525])
