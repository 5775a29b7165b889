import torch

from training.amortise import fit, person_features
from training.photo_pool import PhotoPool


def pool_of(face, image, valid):
    people, photos = valid.shape
    rest = {"image_latents": torch.zeros(people, photos, 1, 1, 1), "prompt_embeds": torch.zeros(1, 1, 1)}
    index = torch.zeros(people, photos, dtype=torch.long)
    return PhotoPool(torch.arange(people), face, image, valid, prompt_index=index, **rest)


def test_photos_without_a_face_do_not_count():
    face, image = torch.ones(2, 3, 4), torch.arange(2.0)[:, None, None].expand(2, 3, 4).clone()
    valid = torch.tensor([[True, True, True], [True, False, False]])
    face[1, 1:], image[1, 1:] = 0, 0  # what the pool holds where no face was found
    features, spread = person_features(pool_of(face, image, valid))
    assert torch.equal(features[0, :4], features[1, :4])  # not a third of it
    assert torch.allclose(spread, torch.full((4,), 0.5**0.5))  # deviation of 0 and 1


def test_a_linear_world_is_predicted_exactly():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=generator)
    targets = features @ torch.randn(6, 30, generator=generator) + 1.0
    ridge, regulariser, score = fit(features, targets, held_out=20)
    assert score > 0.999 and regulariser == 0.003  # nothing to be careful about: the smallest
    assert (ridge.predict(features) - targets).abs().mean() < 0.05


def test_noise_is_not_predicted():
    generator = torch.Generator().manual_seed(1)
    features, targets = torch.randn(60, 40, generator=generator), torch.randn(60, 5, generator=generator)
    _, regulariser, score = fit(features, targets, held_out=20)
    assert score < 0.1 and regulariser == 0.3  # the most careful of the choices
