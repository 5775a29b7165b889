"""Photos of every kind become the same upright 8-bit RGB, or one clear error."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from difflora.errors import PhotoError
from difflora.photos import as_photos, load_photo, reduce_photo


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


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
def test_exif_orientation_is_applied(pixels: np.ndarray, tmp_path, kind: str) -> None:
    """The eight orientations of the EXIF standard (tag 0x0112): what row 0 and column 0 stand for."""
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: np.rot90(pixels, 2),
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    for orientation, expected in upright.items():
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"photo.{kind}", exif=exif, **options)
        shown = load_photo(tmp_path / f"photo.{kind}")
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).max() <= (4 if kind == "jpg" else 0)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"],
)
def test_every_mode_of_a_picture(pixels: np.ndarray, mode: str) -> None:
    colours = np.full_like(pixels, 255)
    colours[:20] = (255, 0, 0)
    on_the_way = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    shown = load_photo(Image.fromarray(colours).convert(on_the_way).convert(mode)).astype(int)
    grey = mode in ("1", "L", "LA", "La", "I", "F")
    expected = [round(0.299 * 255)] * 3 if grey else [255, 0, 0]  # Rec. 601: red is .299 of the light
    assert np.abs(shown[20:] - 255).max() <= (255 if mode == "1" else 2)  # one bit is dithered
    assert np.abs(shown[:20].mean(axis=(0, 1)) - expected).max() <= (10 if mode == "1" else 2)


def test_a_mode_that_cannot_be_shown_says_so(monkeypatch) -> None:
    def refuse(self, mode):
        raise ValueError("conversion from LAB to RGB not supported")  # older versions of Pillow

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(PhotoError, match="of the kind LAB cannot be shown as RGB"):
        load_photo(Image.new("LAB", (40, 40)))


def test_a_large_photo_needs_little_more_memory_than_its_pixels() -> None:
    """Floats at once took 12 bytes per pixel and copy. numpy tells tracemalloc what it allocates."""
    photo = np.full((3000, 4000, 1), 0.5, np.float32)
    tracemalloc.start()
    shown = load_photo(photo)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shown.shape == (3000, 4000, 3) and (shown[::100] == 128).all()
    assert peak < 1.1 * shown.nbytes


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


def test_reducing_is_the_mean_of_squares(pixels: np.ndarray) -> None:
    assert reduce_photo(pixels, 1) is pixels
    means = pixels.reshape(10, 4, 12, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduce_photo(pixels, 4) - means).max() <= 0.51
    assert reduce_photo(pixels, 7).shape == (6, 7, 3)  # 40 / 7 and 48 / 7, rounded up
