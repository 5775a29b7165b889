import pytest
import torch

from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError
from difflora.files import save_safetensors
from difflora.layout import LoraLayout, ModuleSpec, init_shared_down
from difflora.model import EMBEDDED_CHECKPOINT
from training import amortise
from training.amortise import (
    REGULARISERS,
    fit,
    person_features,
    predict_by_checkpoint,
    predict_by_regressor,
)
from training.basis_regressor import BasisRegressor, BasisRegressorConfig, save_regressor
from training.common import digest_of, open_run
from training.correction import Correction
from training.lora_library import SHARED_DOWN_NAME, Library, load_library
from training.photo_pool import PhotoPool

LAYOUT = LoraLayout((ModuleSpec("a", 4, 6),), rank=2, alpha=2.0)


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
    assert score < 0.1 and regulariser == REGULARISERS[-1]  # the most careful of the choices


def test_a_regressor_predicts_from_all_photos_with_a_face(tmp_path, generator):
    regressor = BasisRegressor(LAYOUT, BasisRegressorConfig(face_width=4, image_width=4, hidden=3, bases=2))
    torch.nn.init.normal_(regressor.basis, generator=generator)
    down = init_shared_down(LAYOUT)
    path = save_regressor(tmp_path / "r.safetensors", regressor, down, "base")
    library = Library(LAYOUT, down, torch.zeros(3, LAYOUT.num_parameters), torch.arange(3))
    face, image = torch.randn(2, 5, 3, 4, generator=generator)
    valid = torch.ones(5, 3, dtype=torch.bool)
    valid[2, 1:] = False
    pool = pool_of(face, image, valid)
    predicted = predict_by_regressor(path, library, "base", pool)(torch.tensor([2, 4]))
    alone = regressor(face[2:3, :1], image[2:3, :1], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(predicted[:1], alone)  # the two photos without a face say nothing
    torch.testing.assert_close(predicted[1:], regressor(face[4:], image[4:], valid[4:]))
    with pytest.raises(CheckpointError, match="made for the base model base, not other"):
        predict_by_regressor(path, library, "other", pool)


def test_a_checkpoint_is_corrected_by_what_training_adds_to_its_predictions(generator):
    checkpoint = load_checkpoint(EMBEDDED_CHECKPOINT)
    networks, sizes = checkpoint.networks, checkpoint.networks.config.mif
    people, known = 40, 30
    face = torch.nn.functional.normalize(
        torch.randn(people, 2, sizes.face_width, generator=generator), dim=-1
    )
    image = torch.randn(people, 2, sizes.image_width, generator=generator)
    pool = pool_of(face, image, torch.ones(people, 2, dtype=torch.bool))
    with torch.no_grad():
        condition = networks.condition(face, image, pool.valid)
        start = torch.zeros(people, *networks.latent_mean.shape)
        latents = networks.sample(condition, start, 4, noise_scale=0.0)
        predicted = networks.decode_latents(latents)  # (people, P)
    missing = 0.1 * torch.randn(predicted.shape[1], generator=generator)  # the same for everybody
    luck = 0.01 * torch.randn(known, predicted.shape[1], generator=generator)
    trained = predicted[:known] + missing + luck
    library = Library(checkpoint.layout, checkpoint.shared_down, trained, torch.arange(known))
    corrected = predict_by_checkpoint(checkpoint, library, pool)(torch.arange(known, people))
    error = (corrected - predicted[known:] - missing).square().mean().sqrt()
    assert error < 0.01  # people who were never trained lack it as well, and nobody gets the luck


def test_a_trained_correction_needs_no_library(tmp_path, generator, monkeypatch):
    checkpoint = load_checkpoint(EMBEDDED_CHECKPOINT)
    networks, sizes = checkpoint.networks, checkpoint.networks.config.mif
    face = torch.nn.functional.normalize(torch.randn(5, 2, sizes.face_width, generator=generator), dim=-1)
    image = torch.randn(5, 2, sizes.image_width, generator=generator)
    pool = pool_of(face, image, torch.ones(5, 2, dtype=torch.bool))
    monkeypatch.setattr(amortise, "build_pool", lambda *_: pool)
    correction = Correction(networks.latent_mean.numel(), checkpoint.layout.num_parameters)
    for parameter in correction.parameters():
        torch.nn.init.normal_(parameter, std=0.01, generator=generator)
    path = correction.save(tmp_path / "correction.safetensors", digest_of(EMBEDDED_CHECKPOINT))
    words = ["--out", str(tmp_path / "new"), "--people", "5", "--correction", str(path)]
    with pytest.raises(SystemExit):
        amortise.main(words)  # of which checkpoint?
    amortise.main([*words, "--checkpoint", str(EMBEDDED_CHECKPOINT)])
    made = load_library(tmp_path / "new")
    assert made.people.tolist() == list(range(5)) and made.layout == checkpoint.layout
    assert all(torch.equal(down, made.shared_down[name]) for name, down in checkpoint.shared_down.items())
    latents = amortise.latents_of(networks, pool, torch.arange(5))
    with torch.no_grad():
        expected = networks.decode_latents(latents) + correction(latents.flatten(1))
    torch.testing.assert_close(made.flat, expected)


def library_by_amortise(folder, trained, predicted, **settings):
    """A library as the script writes one: some trained LoRAs, then the predictions."""
    down = init_shared_down(LAYOUT)
    config = {"base_model": "m", "base_model_fingerprint": "f", "layout": LAYOUT.to_json()}
    open_run(folder, config | settings)
    save_safetensors(folder / SHARED_DOWN_NAME, down)
    for number, flat in enumerate((trained, predicted)):
        shard = {"flat_weights": flat, "people": torch.arange(len(flat))}
        save_safetensors(folder / "train" / f"shard-{number:05d}.safetensors", shard)
    return folder


def test_the_average_of_libraries_is_that_of_their_predictions(tmp_path, generator):
    first, second = torch.randn(2, 70, LAYOUT.num_parameters, generator=generator)
    trained = torch.full((3, LAYOUT.num_parameters), 100.0)
    a = library_by_amortise(tmp_path / "a", trained, first, amortised={"people": 70})
    b = library_by_amortise(tmp_path / "b", trained[:1], second, amortised={"people": 70})
    amortise.main(["--average", str(a), str(b), "--out", str(tmp_path / "mean"), "--people", "66"])
    made = load_library(tmp_path / "mean")
    torch.testing.assert_close(made.flat, (first + second)[:66] / 2)  # nobody's trained LoRA in it
    assert made.people.tolist() == list(range(66)) and made.layout == LAYOUT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "predictions for 0 people"),
        ({"amortised": {"people": 4}}, "predictions for 4 people"),
        ({"amortised": {"people": 5}, "base_model_fingerprint": "other"}, "another base model"),
    ],
)
def test_libraries_that_have_no_average(tmp_path, settings, message):
    flat = torch.zeros(5, LAYOUT.num_parameters)
    a = library_by_amortise(tmp_path / "a", flat, flat, amortised={"people": 5})
    b = library_by_amortise(tmp_path / "b", flat, flat, **settings)
    with pytest.raises(CheckpointError, match=message):
        amortise.main(["--average", str(a), str(b), "--out", str(tmp_path / "mean"), "--people", "5"])
    assert not (tmp_path / "mean").exists()
    with pytest.raises(SystemExit):
        amortise.main(["--average", str(a), "--regressor", "r"])
