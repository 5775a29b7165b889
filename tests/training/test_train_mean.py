"""The mean LoRA learns what everybody's LoRA lacks, and nothing else of a checkpoint changes."""

import pytest
import torch
from PIL import Image

from difflora import DiffLoRA
from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError
from difflora.lora_training import denoising_objective, draw_batch
from difflora.model import EMBEDDED_CHECKPOINT
from difflora.synthetic import world
from training import train_mean
from training.make_loras import open_likeness
from training.pictures import PhotoFolders, RenderedPeople
from training.settings import MeanTrainingConfig

FEW = "--num-steps 3 --people 3 --group 2 --pictures 4 --pictures-per-step 2 --identity-weight 0".split()


@pytest.fixture(scope="module")
def world_and_model():
    return BaseModel.load(world.BASE_MODEL), DiffLoRA.load()


def run(folder, *more):
    train_mean.main([*FEW, "--start", str(EMBEDDED_CHECKPOINT), "--out", str(folder), *more])
    return load_checkpoint(folder / "difflora.safetensors")


def test_only_the_mean_changes_and_a_stopped_run_goes_on(tmp_path):
    before, after = load_checkpoint(EMBEDDED_CHECKPOINT), run(tmp_path / "whole")
    own, new = before.networks.state_dict(), after.networks.state_dict()
    assert [name for name in own if not torch.equal(own[name], new[name])] == ["weight_mean"]
    assert after.recommended == before.recommended
    assert (tmp_path / "whole" / "loss.png").is_file()

    latent = torch.zeros(1, *before.networks.latent_mean.shape)
    moved = after.networks.decode_latents(latent) - before.networks.decode_latents(latent)
    change = after.networks.weight_mean - before.networks.weight_mean
    torch.testing.assert_close(moved[0], change, atol=1e-5, rtol=0)
    assert change.abs().max() > 1e-4

    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path / "whole", "--learning-rate", "0.1")
    again = run(tmp_path / "whole", "--float16")  # all steps are done: the same checkpoint, smaller
    torch.testing.assert_close(again.networks.weight_mean, after.networks.weight_mean, rtol=0, atol=0)
    sizes = [(tmp_path / "whole" / "difflora.safetensors").stat().st_size, EMBEDDED_CHECKPOINT.stat().st_size]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_mean_learns_what_everybody_lacks(world_and_model):
    """Everybody's LoRA is spoilt by the same weights: the change takes that back."""
    base, model = world_and_model
    config = MeanTrainingConfig(people=4, group=2, pictures=4, styled=0.0)
    groups = train_mean.open_groups(base, model, RenderedPeople("train", 4), config)
    assert [len(group.predicted) for group in groups] == [2, 2]
    assert not torch.equal(groups[0].prompt_embeds, groups[1].prompt_embeds)  # scenes of their own
    spoilt = 0.05 * torch.randn(model.layout.num_parameters, generator=torch.Generator().manual_seed(3))
    for group in groups:
        group.predicted.add_(spoilt)
    mean = train_mean.MeanChange(model.layout.num_parameters)
    step = train_mean.mean_step(base, model, groups, mean, config)
    optimiser = torch.optim.Adam(mean.parameters(), lr=0.01)

    def loss_of(group, change):
        batch = draw_batch(
            base,
            group.image_latents,
            group.prompt_embeds,
            torch.arange(4),
            torch.Generator().manual_seed(1),
        )
        with (
            torch.no_grad(),
            batched_lora(base.denoiser, model.layout, group.predicted + change, model.shared_down),
        ):
            return float(denoising_objective(base, batch).mean())

    unlearned, whole = (loss_of(groups[0], change) for change in (0.0, -spoilt))
    for number in range(20):
        optimiser.zero_grad()
        step(torch.Generator().manual_seed(number), 0.0).backward()
        optimiser.step()
    learned = loss_of(groups[0], mean.change)
    assert whole < unlearned
    assert learned < whole + 0.5 * (unlearned - whole)
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())


def test_folders_of_photos_and_likeness(world_and_model, tmp_path):
    base, model = world_and_model
    pictures, _ = RenderedPeople("validation", 3).pictures([0, 1, 2], 256)
    for person, own in enumerate(pictures):
        (tmp_path / "photos" / str(person)).mkdir(parents=True)
        for number, picture in enumerate(own):
            array = ((picture + 1) * 127.5).byte().permute(1, 2, 0).numpy()
            Image.fromarray(array).save(tmp_path / "photos" / str(person) / f"{number}.png")
    options = train_mean.read_options(["--start", str(EMBEDDED_CHECKPOINT)])
    config = MeanTrainingConfig(people=64, group=2, pictures=3)
    people = PhotoFolders(tmp_path / "photos", 3)
    groups = train_mean.open_groups(base, model, people, config, open_likeness(options, 0.5))
    assert [len(group.predicted) for group in groups] == [2, 1]  # all there are
    mean = train_mean.MeanChange(model.layout.num_parameters)
    loss = train_mean.mean_step(base, model, groups, mean, config)(torch.Generator().manual_seed(0), 0.0)
    loss.backward()
    assert mean.change.grad.abs().max() > 0
