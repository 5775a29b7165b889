"""Photos of every kind become the same upright 8-bit RGB, or one clear error."""

import numpy as np
import pytest
import torch
from PIL import Image

from difflora.errors import PhotoError
from difflora.photos import as_photos, load_photo


@pytest.fixture
def pixels() -> np.ndarray:
    """(40, 48, 3) uint8, different in every corner."""
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def test_every_source_gives_the_same_pixels(pixels: np.ndarray, tmp_path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    unit = torch.from_numpy(pixels).float() / 255
    for photo in (
        path,
        str(path),
        Image.fromarray(pixels),
        pixels,
        pixels / 255.0,
        unit,
        unit[None],
        unit.half(),
    ):
        assert np.abs(load_photo(photo).astype(int) - pixels).max() <= (
            1 if getattr(photo, "dtype", 0) == torch.half else 0
        )


def test_exif_orientation_is_applied(pixels: np.ndarray, tmp_path) -> None:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_photo(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_transparency_is_laid_on_white(pixels: np.ndarray) -> None:
    alpha = np.zeros((40, 48, 1), dtype=np.uint8)
    alpha[:20] = 255
    shown = load_photo(np.concatenate([pixels, alpha], axis=2))
    assert np.array_equal(shown[:20], pixels[:20])
    assert (shown[20:] == 255).all()
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert (load_photo(palette) == 255).all()


def test_grey_one_bit_and_sixteen_bit(pixels: np.ndarray, tmp_path) -> None:
    grey = pixels[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    wide = grey.astype(np.uint16) * 257  # 255 -> 65535
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for photo in (grey, grey[:, :, None], Image.fromarray(grey), wide, tmp_path / "wide.png"):
        assert np.array_equal(load_photo(photo), expected)
    assert set(np.unique(load_photo(grey > 128))) == {0, 255}
    assert load_photo(Image.fromarray(pixels).convert("CMYK")).shape == pixels.shape


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((1, 1, 3), np.uint8), "1 x 1 px"),
        (np.zeros((31, 500, 3), np.uint8), "at least 32"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0"),
        (np.full((40, 40, 3), np.nan, np.float32), "NaN"),
        (torch.full((40, 40, 3), float("inf")), "infinite"),
        (np.full((40, 40, 3), 200.0), "0 .. 1"),
        (np.zeros((40, 40, 3), np.int64), "ambiguous"),
        (np.zeros((3, 40, 40), np.uint8), "channels last"),
        (np.zeros((2, 40, 40, 3), np.uint8), "channels last"),
        ("nowhere.png", "no such photo"),
        (3, "not int"),
    ],
)
def test_unusable_photos_say_why(photo, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        load_photo(photo)


def test_files_that_are_no_pictures(pixels: np.ndarray, tmp_path) -> None:
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for name, content in (("half.png", data[: len(data) // 2]), ("text.jpg", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PhotoError, match="not a readable picture"):
            load_photo(tmp_path / name)


def test_one_several_and_batches(pixels: np.ndarray) -> None:
    batch = torch.from_numpy(pixels).float()[None].repeat(3, 1, 1, 1) / 255
    assert len(as_photos(pixels)) == 1
    assert len(as_photos(batch)) == 3
    assert len(as_photos([batch, Image.fromarray(pixels), pixels[:35, :33]])) == 5
    with pytest.raises(PhotoError, match="at least one photo"):
        as_photos([])
    with pytest.raises(PhotoError, match=r"photo 2 of 2: .*NaN"):
        as_photos([pixels, np.full((40, 40, 3), np.nan)])
