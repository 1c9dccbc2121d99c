import pytest
import torch

from delta.attacks.attributes import attributes_of
from delta.attacks.inference import infer_attributes, infer_labels
from delta.attacks.reader import train_reader
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import RandomBitsTap
from delta.errors import ConfigError

EPOCHS = 4


def _labels(trained, tap, observed):
    data = trained.data
    return infer_labels(
        tap,
        data.train.images,
        data.train.labels,
        observed,
        data.test.labels,
        trained.private.input,
        classes=10,
        epochs=EPOCHS,
        width=8,
    )


def test_labels_are_read_from_noiseless_releases(trained):
    tap = ReleaseTap(trained.bundles["none"])
    found = _labels(trained, tap, tap.capture(trained.x, trained.test.ids))
    assert found.prior == pytest.approx(10, abs=1)
    assert found.better_than_guessing
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert "tells it" in found.line()
    assert found.to_json()["auxiliary"] == 600


def test_nothing_is_read_from_random_bits(trained):
    tap = RandomBitsTap((1, 16, 16))
    found = _labels(trained, tap, tap.capture(trained.x, trained.test.ids))
    assert found.interval[0] < 15
    assert not found.better_than_guessing
    assert "another may do better" in found.line()


def test_attributes_are_read_beside_the_label(trained):
    tap, data = ReleaseTap(trained.bundles["none"]), trained.data
    found = infer_attributes(
        tap,
        data.train.images,
        data.train.labels,
        tap.capture(trained.x, trained.test.ids),
        data.test.images,
        data.test.labels,
        trained.private.input,
        class_names=data.class_names,
        epochs=EPOCHS,
        width=8,
    )
    assert [one.question for one in found] == ["odd or even", "brightness", "stroke thickness"]
    assert all(one.values == 2 and one.prior < 70 for one in found)
    assert found[0].better_than_guessing


def test_attributes_of_images_in_colour():
    red, blue = torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.1, 0.1, 1.0])
    images = torch.stack([red, blue, 0.5 * red, 0.5 * blue])[:, :, None, None].expand(-1, -1, 8, 8)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    group, brightness, hue = attributes_of(names, images)
    assert group.of(images, torch.tensor([0, 2, 9, 7])).tolist() == [0, 1, 0, 1]
    assert brightness.of(images, torch.zeros(4, dtype=torch.int64)).tolist() == [1, 1, 0, 0]
    hues = hue.of(images, torch.zeros(4, dtype=torch.int64))
    assert hues[0] == hues[2]
    assert hues[1] == hues[3]
    assert hues[0] != hues[1]
    assert len(hue.values) == 4


def test_a_thicker_stroke_is_thicker_whatever_its_length():
    thin, thick = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    thin[..., 2:14, 4:6] = 1
    thick[..., 2:8, 4:9] = 1
    (*_, stroke) = attributes_of(("a", "b"), torch.cat([thin, thin, thick]))
    assert stroke.name == "stroke thickness"
    assert stroke.of(torch.cat([thin, thick]), torch.zeros(2, dtype=torch.int64)).tolist() == [0, 1]


def test_an_attacker_without_records_is_refused(trained):
    tap = ReleaseTap(trained.bundles["none"])
    with pytest.raises(ConfigError, match="2 records of its own"):
        train_reader(
            tap, trained.data.train.images[:1], torch.zeros(1), trained.private.input, classes=2, epochs=1
        )
