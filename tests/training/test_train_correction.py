"""The correction learns what everybody's LoRA lacks and what goes with the latent, and amortise adds it."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from difflora import DiffLoRA
from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.model import EMBEDDED_CHECKPOINT
from difflora.synthetic import world
from training import groups as groups_module
from training import train_correction
from training.common import digest_of
from training.correction import MAP_UNIT, Correction
from training.evaluation_people import face_models
from training.groups import open_groups
from training.make_loras import open_likeness
from training.pictures import PhotoFolders, RenderedPeople
from training.settings import CorrectionTrainingConfig
from training.train_correction import open_latents

FEW = (
    "--num-steps 3 --people 3 --group 2 --pictures 4 --pictures-per-step 2 --identity-weight 0 "
    "--portrait-weight 0"
).split()


@pytest.fixture(scope="module")
def world_and_model():
    return BaseModel.load(world.BASE_MODEL), DiffLoRA.load()


def run(folder, *more):
    train_correction.main([*FEW, "--start", str(EMBEDDED_CHECKPOINT), "--out", str(folder), *more])
    return Correction.load(folder / "correction.safetensors", digest_of(EMBEDDED_CHECKPOINT))


def test_a_run_writes_its_correction_and_belongs_to_one_checkpoint(tmp_path, monkeypatch):
    correction = run(tmp_path / "run")
    assert correction.mean.abs().max() > 1e-4 and correction.map.abs().max() > 1e-4
    assert not correction.mean.requires_grad
    assert (tmp_path / "run" / "loss.png").is_file()
    latents = torch.randn(2, len(correction.map), generator=torch.Generator().manual_seed(0))
    expected = correction.mean + MAP_UNIT * latents @ correction.map
    torch.testing.assert_close(correction(latents), expected)

    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="other settings"):
        patched.setattr(groups_module, "open_groups", None)  # nobody is drawn before
        run(tmp_path / "run", "--learning-rate", "0.1")
    again = run(tmp_path / "run")  # all steps are done
    torch.testing.assert_close(again.map, correction.map, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="corrects another checkpoint"):
        Correction.load(tmp_path / "run" / "correction.safetensors", "0123")


@pytest.mark.parametrize("part", ["mean", "map"])
def test_the_correction_learns_what_is_lacking(world_and_model, part):
    """Everybody's LoRA is spoilt by the same weights, or by some in proportion to the latent."""
    base, model = world_and_model
    networks, draw = model.checkpoint.networks, torch.Generator().manual_seed(3)
    config = CorrectionTrainingConfig(people=4, group=2, pictures=4, styled=0.0)
    groups = open_groups(base, face_models(model), RenderedPeople("train", 4), config, open_latents(model))
    assert [group.inputs[0].shape[:2] for group in groups] == [(2, 5), (2, 5)]
    assert not torch.equal(groups[0].prompt_embeds, groups[1].prompt_embeds)  # scenes of their own
    assert not torch.equal(groups[0].inputs[0][0, 0], groups[0].inputs[0][0, 1])  # from other photos

    sizes = networks.latent_mean.numel(), model.layout.num_parameters
    nothing, cure, learned = (Correction(*sizes) for _ in range(3))
    if part == "mean":
        cure.mean.data.normal_(0, 0.05, generator=draw)
    else:
        cure.map.data[0].normal_(0, 0.05 / MAP_UNIT, generator=draw)
    spoilt = SimpleNamespace(
        latent_mean=networks.latent_mean,
        decode_latents=lambda latents: networks.decode_latents(latents) - cure(latents.flatten(1)),
    )
    patient = SimpleNamespace(
        checkpoint=SimpleNamespace(networks=spoilt), layout=model.layout, shared_down=model.shared_down
    )
    step = train_correction.correction_step(base, patient, groups, learned, config)
    optimiser = torch.optim.Adam(learned.parameters(), lr=0.01)
    for number in range(30):
        optimiser.zero_grad()
        step(torch.Generator().manual_seed(number), 0.0).backward()
        optimiser.step()

    def loss_of(correction):
        measured = train_correction.correction_step(base, patient, groups, correction, config)
        with torch.no_grad():
            return sum(float(measured(torch.Generator().manual_seed(90 + n), 0.0)) for n in range(6))

    whole, unlearned = loss_of(cure), loss_of(nothing)
    assert whole < unlearned
    assert loss_of(learned) < whole + 0.5 * (unlearned - whole)
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


def test_folders_of_photos_and_likeness(world_and_model, tmp_path):
    base, model = world_and_model
    pictures, _ = RenderedPeople("validation", 3).pictures([0, 1, 2], 256)
    for person, own in enumerate(pictures):
        (tmp_path / "photos" / str(person)).mkdir(parents=True)
        for number, picture in enumerate(own):
            array = ((picture + 1) * 127.5).byte().permute(1, 2, 0).numpy()
            Image.fromarray(array).save(tmp_path / "photos" / str(person) / f"{number}.png")
    options = train_correction.read_options(["--start", str(EMBEDDED_CHECKPOINT)])
    config = CorrectionTrainingConfig(people=64, group=2, pictures=3)
    people = PhotoFolders(tmp_path / "photos", 3)
    likeness, _ = open_likeness(options, 0.5, 0.5)
    groups = open_groups(base, face_models(model), people, config, open_latents(model), likeness)
    latents = [group.inputs[0] for group in groups]
    assert [len(own) for own in latents] == [2, 1]  # all there are
    torch.testing.assert_close(latents[0][:, 0], latents[0][:, 3])  # three photos, repeated
    correction = Correction(model.checkpoint.networks.latent_mean.numel(), model.layout.num_parameters)
    step = train_correction.correction_step(base, model, groups, correction, config)
    step(torch.Generator().manual_seed(0), 0.0).backward()
    assert correction.map.grad.abs().max() > 0
