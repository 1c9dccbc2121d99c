"""Bytes of the other side: whatever they are, they end in an error of ours, and cost no more than they may."""

from __future__ import annotations

import struct

import pytest
import torch

from delta.methods.he.envelope import unpacked_bound
from delta.methods.he.parameters import choose_ring
from delta.methods.he.scheme import Scheme, bytes_of, from_bytes

_HEADER = 16


@pytest.fixture(scope="module")
def scheme():
    return Scheme(choose_ring(depth=1, precision=28))


@pytest.fixture(scope="module")
def objects(scheme):
    seal = scheme.seal
    generator = seal.KeyGenerator(scheme.context)
    encryptor = seal.Encryptor(scheme.context, generator.secret_key())
    plain = scheme.encoded(torch.ones(scheme.ring.slots), level=0, scale=scheme.scales[0])
    return {
        "ciphertext": (seal.Ciphertext, bytes_of(encryptor.encrypt_symmetric(plain))),
        "rotation": (seal.GaloisKeys, bytes_of(generator.create_galois_keys([3]))),
        "relinearisation": (seal.RelinKeys, bytes_of(generator.create_relin_keys())),
    }


def _sized(stream: bytes, like: bytes) -> bytes:
    return like[:8] + struct.pack("<Q", _HEADER + len(stream)) + stream


def _bomb(like: bytes, *, unpacked: int) -> bytes:
    """Runs of one byte: 4 bytes a block of 128 KiB."""
    blocks = unpacked // 2**17
    run = ((2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0") * blocks
    return _sized(b"\x28\xb5\x2f\xfd\x00\x58" + run + (1).to_bytes(3, "little"), like)


def test_what_is_honest_passes(scheme, objects):
    for kind, data in objects.values():
        assert len(data) < unpacked_bound(data) <= 4 * len(data) + 2**18
        from_bytes(kind(), scheme.context, data, size=16 * 6 * 4096)


def test_a_stream_that_would_unpack_to_gigabytes_is_refused_unread(scheme, objects):
    for kind, data in objects.values():
        bomb = _bomb(data, unpacked=2**33)
        assert len(bomb) < 2**19
        assert unpacked_bound(bomb) >= 2**33
        with pytest.raises(ValueError, match="more than it may hold"):
            from_bytes(kind(), scheme.context, bomb, size=16 * 6 * 4096)


@pytest.mark.parametrize("name", ["ciphertext", "rotation", "relinearisation"])
def test_spoiled_bytes_are_read_or_refused(scheme, objects, name):
    kind, data = objects[name]
    generator = torch.Generator().manual_seed(0)

    def draw(most: int) -> int:
        return int(torch.randint(0, most, (), generator=generator))

    tries = [b"", data[:8], data[:_HEADER], bytes(100), data + b"\0", bytes(len(data))]
    for _ in range(25):
        cut = data[_HEADER : _HEADER + draw(len(data) - _HEADER)]
        spoiled = bytearray(data)
        spoiled[draw(len(data))] = draw(256)
        front = bytearray(data)
        front[_HEADER + draw(60)] = draw(256)
        tries += [data[: draw(len(data))], _sized(cut, data), bytes(spoiled), bytes(front)]
    refused = 0
    for one in tries:
        try:
            from_bytes(kind(), scheme.context, one, size=16 * 6 * 4096)
        except ValueError:
            refused += 1
    assert refused > 60


def test_objects_of_another_kind_or_ring_are_refused(scheme, objects):
    other = Scheme(choose_ring(depth=3, precision=26))
    for name, (kind, data) in objects.items():
        with pytest.raises(ValueError, match="SEAL does not read it"):
            from_bytes(kind(), other.context, data, size=2**24)
        for another, (other_kind, _) in objects.items():
            if {name, another} in ({"ciphertext", "rotation"}, {"ciphertext", "relinearisation"}):
                with pytest.raises(ValueError, match="SEAL does not read it"):
                    from_bytes(other_kind(), scheme.context, data, size=2**24)


def test_a_ciphertext_of_another_level_or_scale_is_refused(scheme, objects):
    data = objects["ciphertext"][1]
    scheme.ciphertext(data, level=0, scale=scheme.scales[0])
    with pytest.raises(ValueError, match="level and scale"):
        scheme.ciphertext(data, level=1, scale=scheme.scales[0])
    with pytest.raises(ValueError, match="level and scale"):
        scheme.ciphertext(data, level=0, scale=2 * scheme.scales[0])
