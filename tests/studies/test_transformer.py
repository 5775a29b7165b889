"""The study's own choices: which photos everybody is asked about with, and its command line."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from studies import transformer
from training.photo_pool import PhotoPool


def pool():
    numbers = torch.arange(3 * 8).view(3, 8, 1).float()
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[0, :3] = False
    return PhotoPool(
        torch.arange(3), numbers.expand(-1, -1, 512), numbers, valid, torch.zeros(3, 8, 0, 0, 0),
        torch.zeros(3, 8, dtype=torch.long), torch.zeros(1, 1, 1),
    )  # fmt: skip


def test_more_photos_begin_with_the_same_one_and_only_those_with_a_face_count():
    one, eight = transformer.first_features(pool(), 1), transformer.first_features(pool(), 8)
    assert one[0].shape == (3, 1, 512) and eight[1].shape == (3, 8, 1)
    assert torch.equal(one[0], eight[0][:, :1])
    assert one[2].all() and eight[2].sum(dim=1).tolist() == [5, 8, 8]


def test_the_shipped_checkpoint_is_asked_with_one_change_at_a_time(monkeypatch):
    asked = []

    def sample_flat(networks, features, **settings):
        asked.append((features[0].shape[1], settings))
        return None, torch.zeros(3, 1)

    monkeypatch.setattr(transformer, "sample_flat", sample_flat)
    gallery = SimpleNamespace(measure=lambda networks, flat, strengths: dict.fromkeys(strengths))
    rows = transformer.shipped_rows(None, pool(), gallery)
    assert len(rows) == len(asked) == 5 + 4 + 5 + 5 + 3
    assert [photos for photos, _ in asked[:5]] == [1, 2, 3, 4, 8]
    assert all(photos == 1 for photos, _ in asked[5:])
    assert rows["guidance/2"]["curve"].keys() == set(transformer.GUIDANCE_STRENGTHS)
    assert rows["photos/2"]["curve"].keys() == set(transformer.SHIPPED_STRENGTHS)
    last = dict(zip(rows, asked, strict=True))["steps, noise 1/16"]
    assert last == (1, {"num_steps": 16, "noise_scale": 1.0})


def test_an_unknown_variant_is_refused(capsys):
    with pytest.raises(SystemExit):
        transformer.parse(["--variants", "mixed", "wings"])
    assert "wings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        transformer.parse(["--variants", "v", "image_loss"])
    assert "lacks mixed" in capsys.readouterr().err
    assert transformer.parse(["--variants"]).variants == []


def test_it_runs_as_a_file(repository):
    command = [sys.executable, "studies/transformer.py", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
