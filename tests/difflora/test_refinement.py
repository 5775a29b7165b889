"""Refinement lowers the loss of the photo on noise that it has not seen, and moves nothing but the latent."""

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.errors import DiffLoRAError, LayoutError
from difflora.model import DiffLoRA
from difflora.photos import as_arrays, centre_square
from difflora.picture_loss import picture_losses
from difflora.refinement import RefinementConfig, refine
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import sample_scenes
from difflora.synthetic.world import BASE_MODEL


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("diffusers")
    scenes = sample_scenes(2, 4)
    photos = as_arrays(
        render(sample_people("validation", 3, 1).expand(2, -1), scenes, PHOTO_PX).pictures * 2 - 1
    )
    model = DiffLoRA.load()
    return model, BaseModel.load(BASE_MODEL), photos, scenes.prompts()


def loss_of(model, base, latent, photo, caption):
    flat = model.checkpoint.networks.decode_latents(latent.latent[None])
    image_latents = base.encode_images(centre_square(photo, base.picture_px)[None]).expand(32, -1, -1, -1)
    prompts = base.encode_prompts([caption]).expand(32, -1, -1)
    unseen = torch.Generator().manual_seed(99)
    with torch.no_grad():
        return float(
            picture_losses(base, model.layout, flat, model.shared_down, image_latents, prompts, unseen)
        )


def test_the_photo_is_explained_better_and_nothing_else_moves(world) -> None:
    model, base, photos, captions = world
    latent = model.generate_latent(model.encode(photos[0]))
    weights = [p.clone() for net in (model.checkpoint.networks, base.denoiser) for p in net.parameters()]
    before = latent.latent.clone()
    steps = []
    better = refine(model, base, latent, photos[0], captions[:1], progress=lambda *done: steps.append(done))
    assert loss_of(model, base, better, photos[0], captions[0]) < loss_of(
        model, base, latent, photos[0], captions[0]
    )
    torch.testing.assert_close(latent.latent, before)
    after = [p for net in (model.checkpoint.networks, base.denoiser) for p in net.parameters()]
    assert all(torch.equal(old, new) and new.grad is None for old, new in zip(weights, after, strict=True))
    assert steps == [(done, 10) for done in range(1, 11)]
    assert model.decode(better).metadata["difflora.refined_steps"] == "10"
    # a latent moves by at most the sum of the rates, as Adam's first steps do
    assert 0 < float((better.latent - before).abs().max()) < 10 * RefinementConfig.learning_rate


def test_the_seed_decides(world) -> None:
    model, base, photos, captions = world
    latent = model.generate_latent(model.encode(photos))
    short = RefinementConfig(num_steps=2, noises=2)
    first, again, other = (
        refine(model, base, latent, photos, captions, short, seed=seed).latent for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_bad_input_is_refused(world) -> None:
    model, base, photos, captions = world
    latent = model.generate_latent(model.encode(photos[0]))
    with pytest.raises(DiffLoRAError, match="2 captions for 1 photos"):
        refine(model, base, latent, photos[0], captions)
    with pytest.raises(DiffLoRAError, match="above 0"):
        RefinementConfig(num_steps=0)
    with pytest.raises(DiffLoRAError, match="another DiffLoRA checkpoint"):
        refine(model, base, type(latent)(latent.latent, "0" * 16, latent.features), photos[0])


def test_another_base_model_is_refused(world, mini_pipelines) -> None:
    model, _, photos, _ = world
    latent = model.generate_latent(model.encode(photos[0]))
    with pytest.raises(LayoutError):
        refine(model, BaseModel.load(mini_pipelines["sd15"]), latent, photos[0])


def test_progress_can_stop_it(world) -> None:
    model, base, photos, _ = world

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(model, base, model.generate_latent(model.encode(photos[0])), photos[0], progress=stop)
