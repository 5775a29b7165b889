"""The end-to-end regressor in a toy world of linear people."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora.controls import PrincipalComponents, RidgeRegression
from difflora.errors import CheckpointError
from difflora.files import save_safetensors
from difflora.layout import init_shared_down
from training import train_regressor
from training.basis_regressor import BasisRegressor, BasisRegressorConfig, load_regressor, save_regressor
from training.common import read_metrics
from training.lora_library import Library
from training.settings import RegressorTrainingConfig
from training.train_regressor import RegressorData, pool_photos, start_from_ridge, train

spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).with_name("toy_world.py"))
toy_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_world)

SIZES = BasisRegressorConfig(image_width=6, hidden=16, bases=12)
CONFIG = RegressorTrainingConfig(
    num_steps=150, learning_rate=1e-2, ema_decay=0.9, max_photos=2, image_people=16, validate_every=1000
)
DOWN = init_shared_down(toy_world.LAYOUT)


def data() -> RegressorData:
    return RegressorData(toy_world.pool(200, seed=0), toy_world.pool(16, seed=1), toy_world.ToyBase(), DOWN)


def library(given: RegressorData) -> Library:
    people = torch.arange(40)
    flat = toy_world.best_loras(given.pool.select(people), DOWN)
    return Library(toy_world.LAYOUT, DOWN, flat, people)


def regressor(given: RegressorData) -> BasisRegressor:
    torch.manual_seed(0)
    made = BasisRegressor(toy_world.LAYOUT, SIZES)
    made.fit_features(pool_photos(given.pool)[0])
    return made


def test_from_scratch_it_learns_from_pictures_alone(tmp_path: Path) -> None:
    given = data()
    train(regressor(given), given, CONFIG, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == {"step": 0, "image_gain": 0.0}  # zero bases: the base model itself
    assert rows[-1]["image_gain"] > 0.2  # validation people, one photo


def test_from_ridge_it_starts_as_the_closed_form(tmp_path: Path) -> None:
    given, made = data(), regressor(data())
    known = library(given)
    start_from_ridge(made, known, given.pool)
    photos, person = pool_photos(given.pool, known.people)
    components = PrincipalComponents.fit(known.flat, SIZES.bases)
    ridge = RidgeRegression.fit(
        made.standardise(photos), components.project(known.flat)[person], train_regressor.RIDGE_REGULARISER
    )
    wanted = components.reconstruct(ridge.predict(made.standardise(photos[:5])))
    face, image = photos[:5, None, :512], photos[:5, None, 512:]
    torch.testing.assert_close(
        made(face, image, torch.ones(5, 1, dtype=torch.bool)), wanted, atol=1e-4, rtol=1e-3
    )


def test_photos_of_a_person_are_averaged_and_the_mask_counts() -> None:
    made = regressor(data())
    torch.nn.init.normal_(made.basis)
    face, image = torch.randn(2, 3, 512), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    together = made(face, image, mask)
    one = torch.ones(2, 1, dtype=torch.bool)
    each = [made(face[:, n : n + 1], image[:, n : n + 1], one) for n in range(2)]
    torch.testing.assert_close(together[0], (each[0][0] + each[1][0]) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1], each[0][1], atol=1e-4, rtol=1e-4)


def test_a_limit_of_time_ends_the_run_and_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = data()
    clock = iter(range(10_000))
    monkeypatch.setattr(train_regressor.time, "process_time", lambda: float(next(clock)))  # a second a look
    train(regressor(given), given, replace(CONFIG, num_steps=50, seconds=7.0), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows][-1] == 7 and "image_gain" in rows[-1]
    assert rows[-1]["seconds"] == 7.0


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = data()
    config = replace(CONFIG, num_steps=6)
    whole = train(regressor(given), given, config, tmp_path / "whole")
    monkeypatch.setattr(train_regressor, "SAVE_EVERY", 3)
    rate_at = train_regressor.rate_at

    def killed(step: int, *rest: float) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return rate_at(step, *rest)

    monkeypatch.setattr(train_regressor, "rate_at", killed)
    with pytest.raises(KeyboardInterrupt):
        train(regressor(given), given, config, tmp_path / "killed")
    monkeypatch.setattr(train_regressor, "rate_at", rate_at)
    resumed = train(regressor(given), given, config, tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


def test_the_file_gives_the_regressor_back_and_other_files_are_refused(tmp_path: Path) -> None:
    made = regressor(data())
    torch.nn.init.normal_(made.basis)
    save_regressor(tmp_path / "r.safetensors", made, DOWN, "abc")
    read, down, base = load_regressor(tmp_path / "r.safetensors")
    assert base == "abc" and torch.equal(down["proj"], DOWN["proj"]) and read.config == SIZES
    for name, tensor in made.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    save_safetensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="train_regressor"):
        load_regressor(tmp_path / "other.safetensors")


def test_an_unknown_start_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train_regressor.read_options(["--start", "nowhere"])
    assert "scratch, ridge" in capsys.readouterr().err
