"""The end-to-end regressor is trained on from what it is, for one base model, and can be resumed."""

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError
from difflora.model import EMBEDDED_CHECKPOINT
from difflora.synthetic import world
from training import tune_regressor
from training.basis_regressor import BasisRegressor, BasisRegressorConfig, load_regressor, save_regressor
from training.groups import open_groups
from training.pictures import RenderedPeople
from training.presets import preset
from training.settings import RegressorTuningConfig
from training.tune_regressor import read_photos, tuning_step

FEW = (
    "--people 3 --group 2 --pictures 4 --pictures-per-step 2 --identity-weight 0 --portrait-weight 0"
).split()


@pytest.fixture(scope="module")
def base():
    return BaseModel.load(world.BASE_MODEL)


@pytest.fixture(scope="module")
def untrained(base, tmp_path_factory):
    checkpoint = load_checkpoint(EMBEDDED_CHECKPOINT)
    torch.manual_seed(0)
    width = checkpoint.networks.config.mif.image_width
    regressor = BasisRegressor(checkpoint.layout, BasisRegressorConfig(image_width=width, hidden=8, bases=4))
    path = tmp_path_factory.mktemp("regressor") / "untrained.safetensors"
    return save_regressor(path, regressor, checkpoint.shared_down, base.fingerprint)


def test_a_run_goes_on_from_a_regressor(untrained, tmp_path):
    def run(*more):
        tune_regressor.main([*FEW, "--start", str(untrained), "--out", str(tmp_path / "run"), *more])
        return load_regressor(tmp_path / "run" / "regressor.safetensors")[0]

    tuned, start = run("--num-steps", "3"), load_regressor(untrained)[0]
    assert (tuned.mean - start.mean).abs().max() > 1e-5
    torch.testing.assert_close(tuned.feature_unit, start.feature_unit, rtol=0, atol=0)
    again = run("--num-steps", "3")  # all steps are done
    torch.testing.assert_close(again.basis, tuned.basis, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="other settings"):
        run("--num-steps", "4")


def test_it_learns_from_the_pictures_of_a_group(base, untrained):
    config = RegressorTuningConfig(people=2, group=2, pictures=4, styled=0.0, feature_noise=0.0)
    people, encoders = RenderedPeople("train", 4), preset("synthetic").encoders()
    groups = open_groups(base, encoders, people, config, read_photos)
    face, image, mask = groups[0].inputs
    assert face.shape[:3] == (2, 5, 4) and image.shape[:3] == (2, 5, 4)
    assert mask.sum(dim=2).tolist() == [[1, 1, 1, 1, 4]] * 2  # each photo alone, then all
    torch.testing.assert_close(face[:, 1, 0], face[:, 4, 1], rtol=0, atol=0)

    regressor, shared_down, _ = load_regressor(untrained)
    regressor.requires_grad_(True)
    step = tuning_step(base, regressor, shared_down, groups, config)

    def loss():
        with torch.no_grad():
            return sum(float(step(torch.Generator().manual_seed(90 + n), 0.0)) for n in range(6))

    before = loss()
    optimiser = torch.optim.Adam(regressor.parameters(), lr=1e-3)
    for number in range(20):
        optimiser.zero_grad()
        step(torch.Generator().manual_seed(number), 0.0).backward()
        optimiser.step()
    assert loss() < 0.9 * before


def test_a_regressor_of_another_base_model_is_refused(untrained, tmp_path):
    regressor, shared_down, _ = load_regressor(untrained)
    other = save_regressor(tmp_path / "other.safetensors", regressor, shared_down, "0123")
    with pytest.raises(CheckpointError, match="was made for the base model 0123"):
        tune_regressor.main(["--start", str(other), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
