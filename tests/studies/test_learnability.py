"""What the twins measure, what ridge can predict, and the report."""

import torch

from difflora.layout import LoraLayout, ModuleSpec
from studies.learnability import draw_plot, predict, shares, tables
from studies.libraries import Loras

LAYOUT = LoraLayout((ModuleSpec("a", 8, 30), ModuleSpec("b", 8, 60)), rank=2, alpha=2.0)


def test_the_person_has_the_share_that_was_put_in(generator):
    people, size = 40, 2000
    person = torch.randn(people, size, generator=generator)
    runs = []
    for _ in range(2):  # luck of variance 3, and luck that hits everybody alike
        luck = 3**0.5 * torch.randn(people, size, generator=generator)
        runs.append(person + luck + 5 * torch.randn(size, generator=generator))
    agreed, held = shares(*runs)
    assert abs(float(agreed.sum() / held.sum()) - 1 / (1 + 3)) < 0.02
    agreed, held = shares(runs[0], runs[0])
    assert torch.allclose(agreed, held)


def test_ridge_predicts_what_photos_tell_and_nothing_else(generator):
    traits, told = torch.randn(60, 4, generator=generator), torch.randn(4, 6, generator=generator)
    basis = torch.randn(4, LAYOUT.num_parameters, generator=generator)
    known = Loras(LAYOUT, {}, traits[:40] @ basis)
    flat, score = predict(known, traits[:40] @ told, traits[40:] @ told)
    assert score > 0.95
    assert torch.nn.functional.cosine_similarity(flat, traits[40:] @ basis).min() > 0.95
    luck = Loras(LAYOUT, {}, torch.randn(40, LAYOUT.num_parameters, generator=generator))
    assert predict(luck, traits[:40] @ told, traits[40:] @ told)[1] < 0.1


def report():
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    row = {
        "label": "rank 1", "numbers": 1234, "seconds_per_person": 2.5,
        "trained": value, "predicted": value, "predicted_minus_default": value,
    }  # fmt: skip
    twins = {
        "person_share_shared_numbers": value,
        "person_share_own_numbers": {"mean": 0.25, "low": 0.2, "high": 0.3},
        "similarity": {"shared": value},
    }
    return {"settings": {"default": row, "rank_1": row}, "base_model": value, "twins": twins}


def test_report_shows_the_numbers(tmp_path):
    text = tables(report())
    assert "| rank 1 | 1,234 | 2.5 | 0.500 (0.400 to 0.600) |" in text
    assert "| every person's own | 25% (20% to 30%) |" in text
    draw_plot(report()).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
