"""Image folders: selection, order and faults."""

import numpy as np
import pytest
from PIL import Image

from delta.data.image_folder import load_image_folder
from delta.data.load import load_dataset
from delta.errors import DataError, InputError

CLASSES = ("cat", "dog", "owl")


def make(root, train=12, test=6, size=(8, 8), mode="RGB"):
    generator = np.random.default_rng(1)
    for part, count in (("train", train), ("test", test)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).convert(mode)
                image.save(
                    root / part / name / f"{i}.{'png' if i % 2 else 'JPG'}", format="PNG" if i % 2 else "JPEG"
                )
    return root


def test_everything_is_read_in_an_order_that_hides_the_class(tmp_path):
    data = load_image_folder(make(tmp_path / "animals"))
    assert data.name == "animals"
    assert data.class_names == CLASSES
    assert (len(data.train), len(data.test), data.image_shape) == (36, 18, (3, 8, 8))
    labels = data.train.labels.tolist()
    assert sorted(labels) != labels
    assert not any(name in record_id for record_id in data.train.ids for name in CLASSES)
    path = tmp_path / "animals" / "train" / "dog" / "3.png"
    wanted = np.asarray(Image.open(path)).transpose(2, 0, 1)
    matches = [i for i in range(36) if np.array_equal(data.train.pixels[i].numpy(), wanted)]
    assert [labels[i] for i in matches] == [1]


def test_a_limit_is_stratified_seeded_and_proportional(tmp_path):
    root = make(tmp_path / "animals")
    data = load_image_folder(root, limit=18, seed=5)
    assert data.train.labels.bincount().tolist() == [6, 6, 6]
    assert data.test.labels.bincount().tolist() == [3, 3, 3]
    again = load_dataset(str(root), limit=18, seed=5)
    assert again.train.ids == data.train.ids
    assert load_image_folder(root, limit=18, seed=6).train.ids != data.train.ids
    assert set(data.train.ids) <= set(load_image_folder(root, limit=30, seed=5).train.ids)
    assert len(load_image_folder(root, limit=18, test_limit=4).test) == 4


def test_only_chosen_files_are_read(tmp_path):
    root = make(tmp_path / "animals")
    chosen = load_image_folder(root, limit=6, seed=5)
    kept = {pixels.numpy().tobytes() for pixels in (*chosen.train.pixels, *chosen.test.pixels)}
    emptied = 0
    for path in root.rglob("*.*"):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        if np.ascontiguousarray(pixels).tobytes() not in kept:
            path.write_bytes(b"")
            emptied += 1
    assert emptied == 54 - 6 - 3
    assert load_image_folder(root, limit=6, seed=5, channels=3).train.ids == chosen.train.ids
    with pytest.raises(InputError, match="not an image, or damaged"):
        load_image_folder(root, channels=3)


def test_resizing_and_grey_images(tmp_path):
    data = load_image_folder(make(tmp_path / "grey", mode="L"), size=(4, 5))
    assert data.image_shape == (1, 4, 5)
    assert load_image_folder(tmp_path / "grey", channels=3).image_shape == (3, 8, 8)


def test_large_images_are_read_the_same_way(tmp_path):
    root = make(tmp_path / "large", train=2, test=1, size=(200, 200))
    (root / "train" / "owl" / "1.png").write_bytes((root / "train" / "owl" / "1.png").read_bytes()[:-40_000])
    with pytest.raises(InputError, match=r"owl/1\.png: truncated or damaged"):
        load_image_folder(root)


def test_faults_name_the_place(tmp_path):
    with pytest.raises(DataError, match=r"train: no such folder; expected train/<class>/"):
        load_image_folder(tmp_path / "absent")
    root = make(tmp_path / "animals", train=2, test=1)
    Image.new("RGB", (9, 9)).save(root / "train" / "dog" / "9.png")
    with pytest.raises(DataError, match="pixels, the others have"):
        load_image_folder(root)
    assert load_image_folder(root, size=(8, 8)).image_shape == (3, 8, 8)
    Image.new("CMYK", (8, 8)).save(root / "test" / "dog" / "ink.jpg")
    with pytest.raises(InputError, match=r"ink\.jpg: 4 channels \(CMYK\)"):
        load_image_folder(root, size=(8, 8))
    with pytest.raises(DataError, match="one a class at least"):
        load_image_folder(root, limit=2)


def test_classes_must_be_there_and_full(tmp_path):
    root = make(tmp_path / "animals", train=1, test=1)
    (root / "train" / "elk").mkdir()
    with pytest.raises(DataError, match=r"train/elk: no jpg or png files"):
        load_image_folder(root)
    Image.new("RGB", (8, 8)).save(root / "train" / "elk" / "0.png")
    with pytest.raises(DataError, match=r"test/elk: no such class folder"):
        load_image_folder(root)
    for part in root.iterdir():
        for name in ("cat", "dog", "elk"):
            if (part / name).exists():
                (part / name).rename(tmp_path / f"{part.name}-{name}")
    with pytest.raises(DataError, match="1 class folders, expected at least 2"):
        load_image_folder(root)
