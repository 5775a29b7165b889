"""The whole evaluation on the shipped models, as small as it can be; the library is made up."""

import json
import shutil

import pytest
import torch

from difflora import DiffLoRA
from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.files import save_safetensors
from difflora.synthetic import world
from training import evaluate
from training.basis_regressor import (
    BasisRegressor,
    BasisRegressorConfig,
    load_regressor,
    open_regressor,
    save_regressor,
)
from training.evaluation_report import LABELS
from training.lora_library import SHARED_DOWN_NAME

WIDTH = DiffLoRA.load().checkpoint.networks.config.mif.image_width
SIZE = "--people 2 --validation-people 2 --prompts 2 --picture-steps 1 --strengths 1".split()
SIZE += ["--following-prompts", "6"]


@pytest.fixture
def library(tmp_path):
    model = DiffLoRA.load()
    folder = tmp_path / "library"
    splits = {"train": 6, "validation": 2, "test": 2, "validation_reference": 2, "test_reference": 2}
    for split, count in splits.items():
        generator = torch.Generator().manual_seed(count)
        flat = 0.02 * torch.randn(count, model.layout.num_parameters, generator=generator)
        shard = {"flat_weights": flat, "people": torch.arange(count)}
        save_safetensors(folder / split / "shard-00000.safetensors", shard)
    (folder / "config.json").write_text(json.dumps({"layout": model.layout.to_json(), "batch": 4}))
    (folder / "test" / "metrics-0.jsonl").write_text('{"step": 0, "loss": 0.1, "seconds": 8.0}\n')
    save_safetensors(folder / SHARED_DOWN_NAME, dict(model.shared_down))
    return folder


@pytest.fixture
def regressor(tmp_path):
    model, base = DiffLoRA.load(), BaseModel.load(world.BASE_MODEL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BasisRegressor(model.layout, BasisRegressorConfig(image_width=WIDTH, hidden=4, bases=2))
        torch.nn.init.normal_(made.basis, std=0.02)
    return save_regressor(tmp_path / "r.safetensors", made, dict(model.shared_down), base.fingerprint)


def test_a_regressor_of_other_features_is_refused(regressor):
    model, base = DiffLoRA.load(), BaseModel.load(world.BASE_MODEL).fingerprint
    with pytest.raises(CheckpointError, match=f"width {WIDTH}, these have 96: train one"):
        open_regressor(regressor, model, base, 96)


def test_a_regressor_of_another_base_model_is_refused(regressor):
    model = DiffLoRA.load()
    with pytest.raises(CheckpointError, match="not 0123: train one"):
        open_regressor(regressor, model, "0123", WIDTH)
    made, shared_down, base = load_regressor(regressor)
    moved = {name: down + 0.1 for name, down in shared_down.items()}
    save_regressor(regressor, made, moved, base)
    with pytest.raises(CheckpointError, match="lora_down"):
        open_regressor(regressor, model, base, WIDTH)


def test_evaluation_writes_its_report_and_measures_nothing_twice(library, regressor, tmp_path):
    places = ["--library", library, "--run", tmp_path / "run", "--out", tmp_path / "docs"]
    longer = tmp_path / "longer"
    shutil.copytree(library, longer)
    more = ["--started", str(library), "--oracle", str(longer)]  # the library itself will do
    more += ["--regressor", str(regressor), "--tuned-regressor", str(regressor)]
    arguments = [*map(str, places), *more, *SIZE]
    evaluate.main(arguments)
    report = json.loads((tmp_path / "docs" / "evaluation.json").read_text())
    assert set(report["rows"]) == set(LABELS)
    for name in ("trained_lora", "trained_started", "trained_library"):
        assert report["rows"][name]["seconds_per_person"] == 2.0  # 8 seconds for a batch of 4
    assert report["rows"]["true_renders"]["identity_similarity"]["mean"] > 0.5  # the ceiling knows the people
    for row in report["rows"].values():
        assert -1 <= row["r_similarity"]["mean"] <= 1 and 0 <= row["diversity"]["mean"] <= 1
    true, base = report["rows"]["true_renders"], report["rows"]["base_model"]
    assert true["r_similarity"]["mean"] > 0.5 > base["r_similarity"]["mean"]
    assert true["r_similarity"]["mean"] < true["identity_similarity"]["mean"]  # single photos are noisier
    assert report["photo_to_lora"]["peak_mb"] > report["photo_to_lora"]["libraries_mb"] > 10
    assert report["prompt_following"]["prompts"] == 6
    assert report["prompt_following"]["renderer"]["mean"] > 0.9
    assert set(report["prompt_following"]["attributes"]) >= {"pose", "expression"}
    assert set(report["styles"]) == {"sepia", "pencil sketch"}
    for rows in report["styles"].values():
        assert set(rows) == {"base_model", "difflora_1", "trained_lora", "true_renders"}
        assert (
            rows["true_renders"]["attributes"]["style"] > 0.9
            and "background" not in rows["base_model"]["attributes"]
        )
        assert (
            rows["true_renders"]["identity_similarity"]["mean"]
            > rows["base_model"]["identity_similarity"]["mean"]
        )
    assert (tmp_path / "docs" / "images" / "styles.png").stat().st_size > 1000
    assert 0 < report["candidates"]["cosine_of_faces"]["mean"] <= 1
    assert (tmp_path / "docs" / "images" / "evaluation.png").stat().st_size > 1000
    assert "training.evaluate" in (tmp_path / "docs" / "results.md").read_text()

    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results").iterdir()}
    evaluate.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results").iterdir()} == results
