"""The whole evaluation on the shipped models, as small as it can be; the library is made up."""

import json

import pytest
import torch

from difflora import DiffLoRA
from difflora.files import save_safetensors
from training import evaluate
from training.evaluation_report import LABELS
from training.lora_library import SHARED_DOWN_NAME

SIZE = "--people 2 --validation-people 2 --prompts 2 --picture-steps 1 --strengths 1".split()


@pytest.fixture
def library(tmp_path):
    model = DiffLoRA.load()
    folder = tmp_path / "library"
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        generator = torch.Generator().manual_seed(count)
        flat = 0.02 * torch.randn(count, model.layout.num_parameters, generator=generator)
        shard = {"flat_weights": flat, "people": torch.arange(count)}
        save_safetensors(folder / split / "shard-00000.safetensors", shard)
    (folder / "config.json").write_text(json.dumps({"layout": model.layout.to_json(), "batch": 4}))
    (folder / "test" / "metrics-0.jsonl").write_text('{"step": 0, "loss": 0.1, "seconds": 8.0}\n')
    save_safetensors(folder / SHARED_DOWN_NAME, dict(model.shared_down))
    return folder


def test_evaluation_writes_its_report_and_measures_nothing_twice(library, tmp_path):
    places = ["--library", library, "--run", tmp_path / "run", "--out", tmp_path / "docs"]
    arguments = [*map(str, places), *SIZE]
    evaluate.main(arguments)
    report = json.loads((tmp_path / "docs" / "evaluation.json").read_text())
    assert set(report["rows"]) == set(LABELS)
    assert report["rows"]["trained_lora"]["seconds_per_person"] == 2.0  # 8 seconds for a batch of 4
    assert report["rows"]["true_renders"]["identity_similarity"]["mean"] > 0.5  # the ceiling knows the people
    assert (tmp_path / "docs" / "images" / "evaluation.png").stat().st_size > 1000
    assert "training.evaluate" in (tmp_path / "docs" / "evaluation.md").read_text()

    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results").iterdir()}
    evaluate.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results").iterdir()} == results
