"""What a run uploads: every record once, views, names, debits, and the file that holds the bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from delta.errors import CheckpointError
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.ledger import InMemoryLedger
from delta.release.noise import NoiseKey
from delta.training.config import LabelConfig
from delta.training.private_stage import Labelled, PrivateStage
from delta.training.uploads import Uploads, make_uploads, release_records
from delta.wire.training import encode_chunk
from tests.named_stage import KEY, MU, RESPONSE, named_stage
from tests.trained import CLASSES, Trained


@pytest.fixture
def stage(trained: Trained) -> PrivateStage:
    """40 records to fit on and 10 held out, each of a person of its own."""
    return named_stage(trained.private)


@pytest.fixture
def make(trained: Trained, stage: PrivateStage) -> Any:
    """Uploads of the stage under the release `noise`."""
    released = trained.stages["noise"]

    def made(**options: Any) -> Uploads:
        given = {
            "fit": stage.fit,
            "held_out": stage.held_out,
            "classes": CLASSES,
            "labels": LabelConfig(),
            "key": KEY,
            **options,
        }
        return make_uploads(released.private, released.release, **given)

    return made


# What is uploaded


def test_each_record_is_released_once_by_the_function_that_releases_at_inference(trained, stage, make):
    uploads, released = make(), trained.stages["noise"]
    assert sorted(uploads.origin.tolist()) == list(range(50))
    assert torch.equal(uploads.releases.held_out, uploads.origin >= 40)
    for records, first in ((stage.fit, 0), (stage.held_out, 40)):
        bits = release_records(released.private, released.release, records, key=KEY)
        for i in range(len(records.y)):
            (place,) = (uploads.origin == first + i).nonzero().flatten().tolist()
            assert torch.equal(uploads.releases.bits[place], bits[i])
    kept = ~uploads.releases.held_out
    assert torch.equal(uploads.releases.labels[kept], stage.fit.y[uploads.origin[kept]])


def test_the_same_key_and_records_give_the_same_uploads_whatever_the_order_they_come_in(stage, make):
    places = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    fit = stage.fit
    turned = Labelled(
        fit.x[places],
        fit.y[places],
        tuple(fit.ids[i] for i in places.tolist()),
        tuple(fit.subjects[i] for i in places.tolist()),
    )
    for labels in (LabelConfig(), RESPONSE):
        assert make(labels=labels).digest() == make(labels=labels, fit=turned).digest()
    assert make().digest() != make(key=NoiseKey(bytes(32))).digest()


def test_no_name_and_no_label_that_stays_is_in_any_message(stage, make):
    other = replace(stage.held_out, y=(stage.held_out.y + 1) % CLASSES)
    for labels in (LabelConfig(), RESPONSE):
        uploads = make(labels=labels, views=2, augment="shift")
        assert not uploads.releases.labels[uploads.releases.held_out].any()
        assert make(labels=labels, views=2, augment="shift", held_out=other).digest() == uploads.digest()
        sent = b"".join(
            encode_chunk(chunk, classes=CLASSES).SerializeToString()
            for chunk in uploads.chunks(start=0, records=16)
        )
        assert len(sent) > 90 * 32
        names = {*stage.fit.ids, *stage.held_out.ids, *stage.fit.subjects, *stage.held_out.subjects}
        assert not [name for name in names if name.encode() in sent]
        assert b"ward" not in sent
        assert b"person" not in sent
        for ids in (uploads.release_ids, uploads.label_ids):
            assert not [row for row in ids.numpy() if bytes(row) in sent or bytes(row).hex().encode() in sent]


def test_chunks_are_the_upload_from_anywhere_on(make):
    uploads = make()
    for start, records in ((0, 16), (7, 16), (0, 1000), (49, 1), (50, 4)):
        chunks = list(uploads.chunks(start=start, records=records))
        assert [chunk.first for chunk in chunks] == list(range(start, 50, records))
        assert all(1 <= len(chunk.bits) <= records for chunk in chunks)
        if chunks:
            assert torch.equal(torch.cat([c.bits for c in chunks]), uploads.releases.bits[start:])
            assert torch.equal(torch.cat([c.labels for c in chunks]), uploads.releases.labels[start:])
            assert torch.equal(torch.cat([c.held_out for c in chunks]), uploads.releases.held_out[start:])


def test_rows_of_held_out_records_come_back_in_their_order(make):
    uploads = make(views=2, augment="shift")
    places = uploads.origin[uploads.releases.held_out] - 40
    rows = places[:, None].float().repeat(1, CLASSES)  # what a cloud would say of record i: i
    assert torch.equal(uploads.held_out_rows(rows, fit_records=40)[:, 0], torch.arange(10.0))
    assert places.tolist() != list(range(10))


# Views


def test_views_are_releases_of_their_own_and_their_label_is_told_once(trained, stage, make):
    uploads = make(views=3, augment="shift+flip", labels=RESPONSE)
    once = make(labels=RESPONSE)
    assert len(uploads) == 3 * 40 + 10
    counts = torch.bincount(uploads.origin, minlength=50)
    assert counts.tolist() == [3] * 40 + [1] * 10
    assert len({bytes(row) for row in uploads.release_ids.numpy()}) == 130
    assert {bytes(row) for row in once.release_ids.numpy()} < {
        bytes(row) for row in uploads.release_ids.numpy()
    }
    for record in range(40):
        own = uploads.origin == record
        assert len(uploads.releases.labels[own].unique()) == 1
        assert len(uploads.releases.bits[own].unique(dim=0)) == 3
    assert torch.equal(uploads.label_ids, once.label_ids)
    subjects = (*stage.fit.subjects, *stage.held_out.subjects)
    ledger = InMemoryLedger(budget=100.0)
    release = trained.stages["noise"].release
    assert ledger.debit(uploads.debits(release=release, labels=RESPONSE, subjects=subjects)) == 130 + 40
    spent = ledger.spent("person-fit-3")
    assert (spent.releases, spent.labels) == (3, 1)
    assert spent.mu == pytest.approx(MU * 3**0.5, abs=0.01)
    held = ledger.spent("person-held-3")
    assert (held.releases, held.labels) == (1, 0)
    assert ledger.debit(once.debits(release=release, labels=RESPONSE, subjects=subjects)) == 0


def test_debits_are_of_the_mechanism(trained, stage, make):
    subjects = (*stage.fit.subjects, *stage.held_out.subjects)
    for name, kind in (("noise", GaussianRelease), ("none", NonPrivateRelease)):
        debits = make().debits(release=trained.stages[name].release, labels=LabelConfig(), subjects=subjects)
        assert len(debits) == 50
        assert {type(debit.event) for debit in debits} == {kind}
        assert sorted(debit.subject for debit in debits) == sorted(subjects)
    told = make(labels=RESPONSE).debits(
        release=trained.stages["noise"].release, labels=RESPONSE, subjects=subjects
    )
    assert [d.subject for d in told[50:]] == list(stage.fit.subjects)
    assert {d.event for d in told[50:]} == {RandomizedResponseLabel(2.0)}


# On disk


def test_what_is_stored_comes_back(tmp_path, make):
    path = tmp_path / "folder" / "releases"
    assert Uploads.load(path) is None
    for labels in (LabelConfig(), RESPONSE):
        uploads = make(labels=labels)
        path.parent.mkdir(exist_ok=True)
        uploads.save(path)
        again = Uploads.load(path)
        assert again.digest() == uploads.digest()
        for name in ("origin", "release_ids", "label_ids"):
            assert torch.equal(getattr(again, name), getattr(uploads, name))


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "longer"])
def test_a_damaged_file_is_never_taken_nor_drawn_again(tmp_path, make, damage):
    path = tmp_path / "releases"
    make().save(path)
    data = bytearray(path.read_bytes())
    for place in (0, 9, len(data) // 2, len(data) - 1) if damage == "flipped" else (0,):
        spoilt = bytearray(data)
        spoilt[place] ^= 4
        changed = {"flipped": spoilt, "short": data[:-1], "empty": b"", "longer": data + b"\0"}[damage]
        path.write_bytes(changed)
        with pytest.raises(
            CheckpointError, match="damaged; restore the file, or start another run"
        ) as caught:
            Uploads.load(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == bytes(changed)
