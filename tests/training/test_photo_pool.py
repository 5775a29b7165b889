"""Photo pools: references and pictures are disjoint, photos without a face are no references."""

import importlib.util
from pathlib import Path

import torch

from difflora.layout import init_shared_down
from difflora.picture_loss import picture_losses
from training.photo_pool import ScatteredPeople, choose_photos

spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).with_name("toy_world.py"))
toy_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_world)


def test_references_and_pictures_are_disjoint(generator: torch.Generator) -> None:
    valid = torch.rand(500, 8, generator=generator) < 0.7
    references, mask, pictures = choose_photos(valid, 4, 4, generator)
    for row in range(500):
        used = set(references[row, mask[row]].tolist())
        assert not used & set(pictures[row].tolist())
        assert all(valid[row, photo] for photo in used)
        assert bool(used) == bool(valid[row].any())
    assert set(mask.sum(dim=1).tolist()) == {0, 1, 2, 3, 4} or valid.any(dim=1).all()


def test_every_photo_gets_its_turn(generator: torch.Generator) -> None:
    references, _, _ = choose_photos(torch.ones(4000, 4, dtype=torch.bool), 1, 0, generator)
    assert torch.bincount(references.flatten(), minlength=4).min() > 900  # 1000 expected, sd 27


def test_loss_of_a_batch_is_the_loss_of_each_alone(generator: torch.Generator) -> None:
    base, pool = toy_world.ToyBase(), toy_world.pool(3, seed=0)
    down = init_shared_down(toy_world.LAYOUT)
    flat = torch.randn(3, toy_world.LAYOUT.num_parameters, generator=generator)
    latents, prompts = pool.pictures(torch.arange(3), torch.tensor([[0, 1]] * 3))
    together = picture_losses(
        base, toy_world.LAYOUT, flat, down, latents, prompts, torch.Generator().manual_seed(0)
    )
    assert together.shape == (3,)

    fixed = torch.Generator().manual_seed(0)  # the same draws by hand
    times = ((torch.arange(2) + torch.rand(3, 2, generator=fixed)) / 2 * 10).long()
    noise = torch.randn(latents.shape, generator=fixed)
    for row in range(3):
        part = slice(2 * row, 2 * row + 2)
        base.denoiser.proj.weight.copy_(flat[row].view(8, 2) @ down["proj"])
        alone = base.denoising_loss(latents[part], prompts[part], noise[part], times[row])
        torch.testing.assert_close(together[row], alone.mean())


def test_rendered_people_do_not_depend_on_their_company() -> None:
    people = ScatteredPeople("train", 2)
    together, prompts = people.pictures([3, 7], 64)
    alone, own_prompts = people.pictures([7], 64)
    torch.testing.assert_close(together[1:], alone)
    assert prompts[1:] == own_prompts
    assert together.shape == (2, 2, 3, 64, 64) and together.min() >= -1 and together.max() <= 1
