"""Refining a library in a toy world of linear people: LoRAs get better on the pictures of their people."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch

from difflora.autoencoder import LaeConfig
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import init_shared_down
from difflora.mixing import MifConfig
from difflora.normalisation import LoraNormalisation
from difflora.picture_loss import picture_losses
from difflora.transformer import DitConfig
from training.lora_library import Library
from training.refine_library import predicted_rows, refine_people

spec = importlib.util.spec_from_file_location("toy_world", Path(__file__).with_name("toy_world.py"))
toy_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_world)

DOWN = init_shared_down(toy_world.LAYOUT)
SIZES = HypernetworkConfig(
    LaeConfig(
        latent_tokens=2, latent_channels=4, token_size=8, token_width=8, width=8, stages=1, linear_rank=8
    ),
    MifConfig(image_width=6, width=16, heads=2),
    DitConfig(latent_tokens=2, latent_channels=4, condition_width=16, width=16, depth=1, heads=2),
)


def test_of_two_loras_of_a_person_the_later_one_is_refined() -> None:
    twice = Library(toy_world.LAYOUT, DOWN, torch.zeros(5, 16), torch.tensor([0, 1, 0, 1, 2]))
    assert predicted_rows(twice).tolist() == [2, 3, 4]


def test_every_person_is_refined_on_their_own_pictures() -> None:
    pool, base = toy_world.pool(60, seed=0), toy_world.ToyBase()
    best = toy_world.best_loras(pool, DOWN)
    torch.manual_seed(0)
    networks = LoraHypernetwork(toy_world.LAYOUT, SIZES)
    networks.set_normalisation(LoraNormalisation.fit(best, toy_world.LAYOUT))
    networks.lae.start_from_components(networks.normalisation.normalise(best))
    networks.requires_grad_(False).fit_latents(best)
    vague = best.mean(dim=0) + 0.4 * (best - best.mean(dim=0))  # shrunk, as predictions are
    library = Library(toy_world.LAYOUT, DOWN, vague, torch.arange(60))
    rows = torch.tensor([40, 7, 3])
    refined = refine_people(networks, library, rows, pool, base)

    def losses(flat: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
        images, prompts = pool.pictures(people, torch.arange(6).expand(3, -1))
        same = torch.Generator().manual_seed(4)
        return picture_losses(base, toy_world.LAYOUT, flat, DOWN, images, prompts, same)

    assert bool((losses(refined, rows) < 0.9 * losses(vague[rows], rows)).all())
    assert bool((losses(refined, rows) < losses(refined.roll(1, 0), rows)).all())  # their own, not another's
    alone = refine_people(networks, replace(library), rows[1:2], pool, base)
    assert (alone[0] - refined[1]).norm() < 0.7 * (refined[1] - vague[7]).norm()  # other noise, same person
