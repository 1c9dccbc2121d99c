"""Keyed noise: known answers, independence, and key files."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delta.errors import ConfigError, InputError
from delta.release.ids import RecordIds, ReleaseIdentity, length_prefixed, record_digest
from delta.release.memo import InMemoryMemo
from delta.release.noise import NoiseKey

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "keyed_noise.json").read_text(encoding="utf-8"))
BASE = ReleaseIdentity("person", "record", b"d" * 32, "h" * 64, "delta/one-bit/1")
CHANGES = {
    "subject": "other",
    "record": "record2",
    "digest": b"e" * 32,
    "release_hash": "i" * 64,
    "mechanism": "delta/one-bit/2",
}


@pytest.mark.parametrize("case", VECTORS["noise"], ids=lambda case: case["record"])
def test_known_answers(case):
    key = NoiseKey(bytes.fromhex(case["key"]))
    names = ("subject", "record", "release_hash", "mechanism")
    identity = ReleaseIdentity(digest=bytes.fromhex(case["digest"]), **{name: case[name] for name in names})
    assert [str(u) for u in key.uniforms(identity, 8).numpy()] == case["uniforms"]
    assert [str(u) for u in key.uniforms(identity, 3).numpy()] == case["uniforms"][:3]
    assert key.release_id(identity) == case["release_id"]


def test_known_digest():
    for case in VECTORS["digests"]:
        record = torch.tensor(case["values"]).view(1, 2, -1)
        assert record_digest(record).hex() == case["digest"]
        assert record_digest(record.transpose(1, 2).contiguous().transpose(1, 2)).hex() == case["digest"]


def test_digests_tell_dtype_shape_and_content_apart():
    x = torch.arange(8.0)
    others = [x, x.view(2, 4), x.view(4, 2), x.double(), x.bfloat16(), x.int(), x + 1, -x, x.flip(0)]
    assert len({record_digest(other) for other in others}) == len(others)


@pytest.mark.parametrize("field", CHANGES)
def test_any_other_identity_has_independent_noise_and_another_name(field):
    key = NoiseKey(bytes(32))
    other = dataclasses.replace(BASE, **{field: CHANGES[field]})
    high = [key.uniforms(identity, 20_000).numpy() >> np.uint64(63) for identity in (BASE, other)]
    # 20,000 fair coins agree in 10,000 ± 5.3 standard deviations but once in ten million keys.
    assert abs(int((high[0] == high[1]).sum()) - 10_000) < 375
    assert key.release_id(BASE) != key.release_id(other)


def test_another_key_changes_everything():
    one, two = NoiseKey(bytes(32)), NoiseKey(bytes(31) + b"\1")
    assert not np.array_equal(one.uniforms(BASE, 8).numpy(), two.uniforms(BASE, 8).numpy())
    assert one.release_id(BASE) != two.release_id(BASE)
    assert not np.array_equal(NoiseKey.generate().uniforms(BASE, 8).numpy(), one.uniforms(BASE, 8).numpy())


def test_uniforms_are_uniform():
    draws = NoiseKey(bytes(32)).uniforms(BASE, 64_000).numpy()
    assert draws.dtype == np.uint64
    counts = np.bincount((draws >> np.uint64(60)).astype(int), minlength=16)
    assert ((counts - 4000) ** 2 / 4000).sum() < 56  # χ² with 15 degrees of freedom: once in a million
    bits = ((draws[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).sum(0)
    assert np.abs(bits.astype(int) - 32_000).max() < 6 * 126.5


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_length_prefixes_leave_no_two_readings(one, two):
    assert (length_prefixed(*one) == length_prefixed(*two)) == (one == two)


def test_a_key_file_round_trip(tmp_path):
    key, path = NoiseKey.generate(), tmp_path / "noise.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 32
    assert NoiseKey.load(path).release_id(BASE) == key.release_id(BASE)
    with pytest.raises(ConfigError, match="exists"):
        NoiseKey.generate().save(path)
    assert NoiseKey.load(path).release_id(BASE) == key.release_id(BASE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_key_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "noise.key"
    NoiseKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        NoiseKey.load(path)


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_a_key_of_another_size_is_refused(tmp_path, size):
    path = tmp_path / "noise.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="32 bytes"):
        NoiseKey.load(path)
    with pytest.raises(ConfigError, match="32 bytes"):
        NoiseKey(bytes(size))


def test_absent_and_odd_key_paths_are_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        NoiseKey.load(tmp_path / "none.key")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        NoiseKey.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        NoiseKey.generate().save(tmp_path / "absent" / "noise.key")
    assert os.listdir(tmp_path) == []


def test_a_key_is_not_printed():
    secret = b"0123456789abcdef0123456789abcdef"
    assert "0123" not in f"{NoiseKey(secret)!r} {NoiseKey(secret)}"


def test_memo_keeps_what_was_first():
    memo, key = InMemoryMemo(), NoiseKey(bytes(32))
    name = key.release_id(BASE)
    assert memo.get(name) is None
    assert memo.keep(name, b"one") == b"one"
    assert memo.keep(name, b"two") == b"one"
    assert memo.get(name) == b"one"
    assert len(memo) == 1


@pytest.mark.parametrize(
    "ids", [RecordIds(records=["a"]), RecordIds(subjects=["a"]), RecordIds(records="ab")]
)
def test_ids_are_one_a_record(ids):
    with pytest.raises(InputError, match="one a record"):
        ids.check(2)


def test_a_batch_draws_what_each_release_draws():
    key = NoiseKey(bytes(range(32)))
    identities = [
        dataclasses.replace(BASE, record=str(i), subject=subject) for i, subject in enumerate("aab")
    ]
    together = key.batch_uniforms(identities, 16)
    assert together.dtype == torch.uint64
    assert torch.equal(together, torch.stack([key.uniforms(one, 16) for one in identities]))
    assert len({tuple(row) for row in together.tolist()}) == 3
