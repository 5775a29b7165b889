"""Photos -> features: crops, the CLIP vision tower, and everything together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from difflora.errors import DiffLoRAError, FaceModelError, PhotoError
from difflora.faces import Face, FaceAnalyzer
from difflora.features import (
    Encoders,
    IdentityFeatures,
    ImageEncoder,
    check_encoders,
    crop_face,
    encode_photos,
    join_features,
    pad_photos,
    square_pixels,
)
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import scene_for

PACK = Path(__file__).resolve().parents[2] / "difflora" / "synthetic" / "weights" / "face_pack"
WIDTH = 24


@pytest.fixture(scope="module")
def analyzer() -> FaceAnalyzer:
    return FaceAnalyzer(PACK, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    """A random CLIP vision tower as transformers saves it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    settings = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def portrait(person: int = 0, scene=None) -> np.ndarray:
    """(64, 64, 3) uint8 of somebody whom no model was trained on."""
    picture = render(sample_people("test", person, 1), scene or scene_for(expression="smiling")).pictures[0]
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def seen_by_transformers(encoder_folder: Path):
    """A photo, and what the tower of the library says of it: the definition, by hand."""
    from transformers import CLIPVisionModelWithProjection

    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    pixels = (torch.from_numpy(photo).float() / 255 - mean) / std  # (32, 32, 3)
    model = CLIPVisionModelWithProjection.from_pretrained(encoder_folder).train(False)
    with torch.no_grad():
        return photo, model(pixel_values=pixels.permute(2, 0, 1)[None])


def test_image_features_equal_those_of_the_transformers_processor(encoder_folder: Path) -> None:
    encoder = ImageEncoder(encoder_folder)
    photo, expected = seen_by_transformers(encoder_folder)
    torch.testing.assert_close(encoder.encode([photo]), expected.image_embeds)
    assert encoder.encode([photo, photo[:20]]).shape == (2, WIDTH) == (2, encoder.width)
    assert encoder.encode([]).shape == (0, WIDTH)


def test_a_grid_adds_averages_of_normalised_patches(encoder_folder: Path) -> None:
    encoder = ImageEncoder(encoder_folder)
    photo, expected = seen_by_transformers(encoder_folder)
    tokens = expected.last_hidden_state[0, 1:]  # (16, 16)
    tokens = (tokens - tokens.mean(1, keepdim=True)) / (
        tokens.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    four = tokens.reshape(4, 4, 16)  # 32 px in patches of 8
    cells = [four[row : row + 2, column : column + 2].mean((0, 1)) for row in (0, 2) for column in (0, 2)]
    wider = encoder.with_grid(2)
    features = wider.encode([photo])
    torch.testing.assert_close(features[:, :WIDTH], encoder.encode([photo]))
    torch.testing.assert_close(features[0, WIDTH:], torch.cat(cells), atol=1e-4, rtol=1e-4)
    assert features.shape == (1, wider.width) == (1, WIDTH + 4 * 16)
    assert wider.encode([]).shape == (0, wider.width)
    assert encoder.width == WIDTH, "the other encoder stays as it is"
    assert wider.fingerprint != encoder.fingerprint == wider.with_grid(0).fingerprint


def test_an_incomplete_image_encoder_says_what_is_missing(encoder_folder: Path, tmp_path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "partial")
    (tmp_path / "partial" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FaceModelError, match=r"model\.safetensors"):
        ImageEncoder(tmp_path / "partial")
    (tmp_path / "partial" / "preprocessor_config.json").unlink()
    with pytest.raises(FaceModelError, match=r"has no preprocessor_config\.json"):
        ImageEncoder(tmp_path / "partial")


@pytest.mark.parametrize(
    ("box", "side", "corner"),
    [
        ((40.0, 40.0, 60.0, 60.0), 40, (30, 30)),  # room on all sides: twice the face
        ((0.0, 0.0, 20.0, 20.0), 40, (0, 0)),  # moved inside
        ((20.0, 20.0, 90.0, 80.0), 100, (0, 0)),  # no larger than the photo
    ],
)
def test_the_crop_is_a_square_around_the_face(box, side: int, corner) -> None:
    y, x = np.mgrid[:100, :100]
    photo = np.stack([x, y, x], axis=-1).astype(np.uint8)
    crop = crop_face(photo, Face(box, 1.0, ()))
    assert crop.shape == (side, side, 3)
    assert (crop[0, 0, 0], crop[0, 0, 1]) == corner


def test_a_face_larger_than_the_photo_is_padded_with_its_edge() -> None:
    photo = np.arange(100 * 60 * 3, dtype=np.uint32).reshape(100, 60, 3).astype(np.uint8)
    crop = crop_face(photo, Face((-10.0, 10.0, 70.0, 90.0), 1.0, ()))
    assert crop.shape == (80, 80, 3)
    assert np.array_equal(crop[:, 10:70], photo[10:90])
    assert np.array_equal(crop[:, 0], photo[10:90, 0])


def test_encode_photos_gives_both_features_and_a_report(analyzer: FaceAnalyzer, encoder_folder: Path) -> None:
    encoder = ImageEncoder(encoder_folder)
    features = encode_photos(
        [portrait(), np.zeros((64, 64, 3), np.uint8), portrait(1)], analyzer, encoder, "skip"
    )
    assert len(features) == 2
    assert features.face_embedding.shape == (2, 512)
    assert features.image_features.shape == (2, WIDTH)
    assert [report.used for report in features.faces] == [True, False, True]
    assert features.to("cpu", torch.float64).image_features.dtype == torch.float64
    with pytest.raises(PhotoError, match="photo 1 of 1"):
        encode_photos([np.zeros((1, 1, 3), np.uint8)], analyzer, encoder)


def test_a_large_crop_is_averaged_down_before_the_filter_to_nearly_the_same() -> None:
    y, x = np.mgrid[:1024, :1024] / 1024
    photo = np.stack([x, y, (np.sin(9 * x) * np.cos(7 * y) + 1) / 2], axis=-1)  # smooth, so both agree
    photo = (photo * 255).round().astype(np.uint8)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255, (32, 32), mode="bicubic", antialias=True
    )[0].clamp(0, 1)
    torch.testing.assert_close(square_pixels(photo, 32), exact, atol=0.01, rtol=0)
    assert torch.equal(
        square_pixels(photo[:32, :32], 32), torch.from_numpy(photo[:32, :32]).permute(2, 0, 1) / 255
    )


def person(photos: int, seed: int = 0, **values: object) -> IdentityFeatures:
    generator = torch.Generator().manual_seed(seed)
    face = torch.nn.functional.normalize(torch.randn(photos, 512, generator=generator), dim=-1)
    return IdentityFeatures(face, torch.randn(photos, 6, generator=generator), **values)


def test_padding_marks_missing_photos() -> None:
    face, image, mask = pad_photos([person(1), person(3)], "cpu")
    assert face.shape == (2, 3, 512) and image.shape == (2, 3, 6)
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    weighted = person(2, weights=torch.tensor([0.5, 1.5]))
    assert pad_photos([person(1), weighted], "cpu")[2].tolist() == [[1.0, 0.0], [0.5, 1.5]]


def test_the_mean_face_follows_the_weights() -> None:
    features = person(3)
    one = IdentityFeatures(
        features.face_embedding, features.image_features, weights=torch.tensor([0, 1.0, 0])
    )
    torch.testing.assert_close(one.mean_face, features.face_embedding[1])
    expected = torch.nn.functional.normalize(features.face_embedding.sum(dim=0), dim=0)
    torch.testing.assert_close(features.mean_face, expected)


def test_joined_people_have_their_shares() -> None:
    joined = join_features([person(1, 1), person(3, 2), person(2, 3)], [0.75, 0.25, 0.0])
    assert len(joined) == 4  # the third one has no share
    torch.testing.assert_close(joined.weights, torch.tensor([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3]) * 4)
    other = person(1, encoders=Encoders("a", "1", "b", "2"))
    with pytest.raises(DiffLoRAError, match="different encoders"):
        join_features([other, person(1, encoders=Encoders("c", "1", "b", "2"))], [0.5, 0.5])


def test_encoders_are_compared_by_weights_where_they_are_known() -> None:
    ours = Encoders("pack", "1", "clip", "2")
    check_encoders(None, ours)
    check_encoders(ours, ours)
    check_encoders(ours, Encoders("pack", "", "clip", ""))
    for theirs in (Encoders("pack", "9", "clip", "2"), Encoders("pack", "1", "other", "2")):
        with pytest.raises(DiffLoRAError, match="encode the photos again"):
            check_encoders(theirs, ours)
