"""Single image files: what is read, and one clear line for each fault."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delta.data.images import find_images, load_image
from delta.errors import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def write(path, mode="RGB", **options):
    Image.fromarray(NOISE).convert(mode).save(path, **options)
    return path


def test_a_colour_image_is_read_exactly(tmp_path):
    image = load_image(write(tmp_path / "a.png"), channels=3, size=None)
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, 12, 10))
    assert np.array_equal((image * 255).round().numpy().transpose(1, 2, 0), NOISE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_a_colour_model_reads_opaque_and_grey_images(tmp_path, mode):
    image = load_image(write(tmp_path / "a.png", mode), channels=3, size=(6, 8))
    assert tuple(image.shape) == (3, 6, 8)
    if mode in ("1", "L", "LA"):
        assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_a_grey_model_reads_grey_images(tmp_path, mode):
    image = load_image(write(tmp_path / "a.png", mode), channels=1, size=None)
    assert tuple(image.shape) == (1, 12, 10)
    assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0


@pytest.mark.parametrize(
    ("mode", "suffix", "channels", "reason"),
    [
        ("RGB", "png", 1, r"3 channels \(RGB\), the model takes 1"),
        ("RGBA", "png", 1, r"4 channels \(RGBA\), the model takes 1"),
        ("P", "png", 1, r"3 channels \(P\)"),
        ("CMYK", "jpg", 3, r"4 channels \(CMYK\), the model takes 3"),
        ("CMYK", "tif", 1, r"4 channels \(CMYK\), the model takes 1"),
        ("I;16", "png", 3, "more than 8 bits a pixel"),
        ("F", "tif", 1, "more than 8 bits a pixel"),
    ],
)
def test_wrong_channels_are_named(tmp_path, mode, suffix, channels, reason):
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save(path)
    else:
        write(path, mode)
    with pytest.raises(InputError, match=reason) as error:
        load_image(path, channels=channels, size=None)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_transparency_is_refused_and_four_channels_too(tmp_path):
    image = Image.fromarray(NOISE).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 0))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"4 channels with transparency \(RGBA\).*flatten"):
        load_image(tmp_path / "a.png", channels=3, size=None)
    with pytest.raises(InputError, match="1 or 3 channels, the model takes 4"):
        load_image(tmp_path / "a.png", channels=4, size=None)


def test_a_turned_photo_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(write(tmp_path / "a.png", exif=exif), channels=3, size=None)
    assert tuple(image.shape) == (3, 10, 12)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_images(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"truncated or damaged image .*replace the file"):
        load_image(path, channels=3, size=None)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("a.jpg", "b.jpg", "c.eps"):
        with pytest.raises(InputError, match=f"{name}: not an image, or damaged"):
            load_image(tmp_path / name, channels=3, size=None)
    with pytest.raises(InputError, match="no such file"):
        load_image(tmp_path / "absent.png", channels=3, size=None)
    with pytest.raises(InputError, match="a folder"):
        load_image(tmp_path, channels=3, size=None)


@pytest.mark.parametrize("side", [8_100, 12_000, 20_000])
def test_a_decompression_bomb_is_refused_undecoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="more than 64 million pixels"):
            load_image(path, channels=1, size=None)


def test_find_images(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.PNG", "in/a.jpg", ".hidden/c.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_images([tmp_path]) == [tmp_path / "b.PNG", tmp_path / "in" / "a.jpg"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # asked for by name
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in this folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file or folder"):
        find_images([tmp_path / "absent"])
    with pytest.raises(InputError, match="no images given"):
        find_images([])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    return folder, [write(folder / f"a.{s}").read_bytes() for s in ("png", "jpg", "tif", "webp", "bmp")]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow grumbles at damaged tags, and reads on
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_one_line(samples, data):
    folder, originals = samples
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = tuple(load_image(path, channels=3, size=(4, 4)).shape)
    except InputError as error:
        found = str(error)
    assert found == (3, 4, 4) or (found.startswith(f"{path}: ") and "\n" not in found)
