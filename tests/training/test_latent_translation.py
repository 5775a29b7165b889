"""LoRAs of another training are translated into the latents that DiffLoRA predicts for the same people."""

import pytest
import torch

from difflora.checkpoint import load_checkpoint
from difflora.features import IdentityFeatures
from difflora.model import EMBEDDED_CHECKPOINT, DiffLoRA
from training.latent_translation import Translation

PEOPLE, KNOWN, PHOTOS = 260, 240, 2


@pytest.fixture(scope="module")
def world():
    """People's features, which of their photos show a face, and the latents that DiffLoRA predicts."""
    model = DiffLoRA(load_checkpoint(EMBEDDED_CHECKPOINT))
    generator = torch.Generator().manual_seed(0)
    config = model.checkpoint.networks.config.mif
    person = torch.randn(PEOPLE, 1, config.face_width + config.image_width, generator=generator)
    features = person + 0.1 * torch.randn(PEOPLE, PHOTOS, person.shape[-1], generator=generator)
    features *= 0.004  # latents then differ by about 1
    valid = torch.ones(PEOPLE, PHOTOS, dtype=torch.bool)
    valid[3, 1] = valid[5, 0] = False
    width = config.face_width
    people = [
        IdentityFeatures(own[seen, :width], own[seen, width:])
        for own, seen in zip(features, valid, strict=True)
    ]
    return model, features * valid[..., None], valid, model.sample_latents(people)


def foreign(model, latents):
    """LoRAs that say the same in other numbers: another mean, other sizes, correlated luck."""
    generator = torch.Generator().manual_seed(1)
    shape = latents.shape[1:]
    luck = torch.randn(len(latents), 1, 1, generator=generator) * torch.randn(shape, generator=generator)
    other = 3 + latents * (1 + torch.rand(shape, generator=generator)) + luck
    with torch.no_grad():
        return model.checkpoint.networks.decode_latents(other)


def error(model, flat, latents):
    """Of decoded LoRAs, as a share of how much the true ones differ."""
    with torch.no_grad():
        decoded = model.checkpoint.networks.decode_latents(torch.stack([flat, latents]).flatten(0, 1))
    ours, true = decoded.unflatten(0, (2, -1))
    return float((ours - true).square().mean() / true.var(dim=0).mean())


def test_people_of_no_library_are_translated(world):
    model, features, valid, latents = world
    flat = foreign(model, latents)
    translation = Translation.fit(model, flat[:KNOWN], features[:KNOWN], valid[:KNOWN])
    translated = error(model, translation.encode(flat[KNOWN:]), latents[KNOWN:])
    standardised = error(model, translation.networks.encode_loras(flat[KNOWN:]), latents[KNOWN:])
    as_they_are = error(model, model.checkpoint.networks.encode_loras(flat[KNOWN:]), latents[KNOWN:])
    assert translated < 0.5 * min(standardised, as_they_are)


def test_the_model_keeps_its_own_statistics(world):
    model, features, valid, latents = world
    before = model.checkpoint.networks.latent_mean.clone()
    Translation.fit(model, foreign(model, latents)[:9], features[:9], valid[:9])
    assert torch.equal(model.checkpoint.networks.latent_mean, before)


def test_people_without_a_face_teach_nothing(world):
    model, features, valid, latents = world
    flat, hidden = foreign(model, latents), valid.clone()
    hidden[7] = False
    changed = features.clone()
    changed[7] = 100.0
    ridges = [
        Translation.fit(model, flat[:KNOWN], some[:KNOWN], hidden[:KNOWN]).ridge
        for some in (features, changed)
    ]
    assert torch.equal(ridges[0].weights, ridges[1].weights)
