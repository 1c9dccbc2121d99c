"""The release end to end: same bits anywhere, independent where anything differs, stored bytes reused."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import delta.release.releaser as releaser_module
from delta.decomposition.basis import iteration_start, pca_basis, synthetic_images
from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError, InputError
from delta.methods.base import RecordIds as ReexportedIds
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Bounding,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.ids import RecordIds
from delta.release.memo import InMemoryMemo
from delta.release.message import MessageMap
from delta.release.noise import NoiseKey
from delta.release.packing import unpack_bits
from delta.release.releaser import Releaser

KEY = NoiseKey(bytes(range(32)))
X = synthetic_images(5, (3, 16, 16), 3)
IDS = RecordIds(records=[f"r{i}" for i in range(5)], subjects=["ann", "ann", "bob", "bob", "cy"])


def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)
        ).eval()


def setup(*, kind="pca", algorithm="exact", offload="residual", message="channel-mean", k=None, **changes):
    """A configuration and its modules, as keyword arguments of `Releaser`."""
    phi = backbone()
    basis = None
    if kind == "pca":
        with torch.no_grad():
            basis = pca_basis(phi(synthetic_images(8, (3, 16, 16), 0)), 4)
    start = iteration_start(16, 4, 0) if algorithm == "approximate" else None
    decomposer = Decomposer(
        channels=16,
        height=16,
        width=16,
        rank=4,
        block=8,
        keep=4,
        kind=kind,
        algorithm=algorithm,
        basis=basis,
        start=start,
    )
    stream = (16, 16, 16) if offload == "residual" else decomposer.principal_shape
    mapping = MessageMap(message, channels=stream[0], k=k)
    known = Provenance(kind="data-independent")
    fields = {
        "input": InputSpec(shape=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3),
        "ir_shape": (16, 16, 16),
        "backbone": Component(hash=computation_hash(phi), provenance=known),
        "basis": BasisConfig(
            kind=kind,
            rank=4,
            algorithm=algorithm,
            component=Component(hash=component_hash(decomposer.state_dict()), provenance=known),
        ),
        "crop": CropConfig(block=8, keep=4),
        "offload": offload,
        "message": MessageConfig(
            map=message,
            shape=(mapping.k, *stream[1:]),
            component=Component(hash=component_hash(mapping.state_dict()), provenance=known),
        ),
        "sigma": 0.05,
    }
    config = ReleaseConfig(**{**fields, **changes})
    return {"config": config, "backbone": phi, "decomposer": decomposer, "message": mapping}


def make(key=KEY, memo=None, **choices):
    return Releaser(**setup(**choices), key=key, memo=memo)


def naive_message(parts, x):
    """The message of one record by the book: residual as a whole, then the map."""
    with torch.no_grad():
        phi = parts["backbone"](x)
        split = parts["decomposer"](phi)
        stream = (
            phi - parts["decomposer"].reconstruct(split)
            if parts["config"].offload == "residual"
            else split.principal
        )
        return torch.einsum("kc,bchw->bkhw", parts["message"].matrix, stream)


CHOICES = [
    {},
    {"kind": "svd"},
    {"kind": "svd", "algorithm": "approximate"},
    {"message": "projection", "k": 3},
    {"message": "all-channels"},
    {"offload": "principal", "message": "all-channels"},
    {"offload": "principal", "message": "projection", "k": 2},
    {"offload": "principal", "message": "channel-mean"},
    {"bounding": Bounding(kind="clip", clip_norm=2.0)},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("sigma", [None, 0.05])
def test_bits_come_from_the_message_by_the_book(choices, sigma):
    parts = setup(**choices, sigma=sigma)
    released = Releaser(**parts, key=KEY, memo=None).release(X, IDS)
    config = parts["config"]
    assert released.payload.shape == (5, config.payload_bytes)
    assert released.main_input.shape[1:] == parts["decomposer"].main_shape
    bits = unpack_bits(released.payload, config.message.shape).bool()
    m = naive_message(parts, X).double()
    norm = m.flatten(1).norm(dim=1)[:, None, None, None]
    size = 1e-5 * float(m.abs().max())
    if sigma is None:
        sure = m.abs() > size
        assert torch.equal(bits[sure], (m >= 0)[sure])
    else:
        bound = config.bounding.clip_norm
        factor = bound / norm if config.bounding.kind == "normalise" else (bound / norm).clamp(max=1)
        mean = torch.special.ndtr(m * factor / sigma)
        z = (bits.double() - mean).sum() / (mean * (1 - mean)).sum().sqrt()
        assert abs(float(z)) < 5
        sure = (mean < 1e-9) | (mean > 1 - 1e-9)
        assert torch.equal(bits[sure], (mean > 0.5)[sure])


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_release_does_not_depend_on_the_batch(choices):
    releaser = make(**choices)
    whole = releaser.release(X, IDS)
    for first, last in ((0, 1), (3, 4), (4, 5), (1, 3), (2, 5)):
        ids = RecordIds(records=IDS.records[first:last], subjects=IDS.subjects[first:last])
        some = releaser.release(X[first:last], ids)
        assert torch.equal(some.payload, whole.payload[first:last])
        assert torch.equal(some.main_input, whole.main_input[first:last])
        assert some.release_ids == whole.release_ids[first:last]


def test_a_long_batch_is_the_same_as_its_parts():
    releaser = make()
    x = synthetic_images(130, (3, 16, 16), 9)
    parts = [releaser.release(x[i : i + 13]).payload for i in range(0, 130, 13)]
    assert torch.equal(releaser.release(x).payload, torch.cat(parts))


def test_another_process_gives_the_same_bits():
    script = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("made", {str(Path(__file__))!r})
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        sys.stdout.write(made.digest_of_release())
    """
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == digest_of_release()


def digest_of_release():
    released = make().release(X, IDS)
    return hashlib.sha256(
        released.payload.numpy().tobytes() + "".join(released.release_ids).encode()
    ).hexdigest()


def agreement(one, two):
    shape = (1, 16, 16)
    return float((unpack_bits(one, shape) == unpack_bits(two, shape)).double().mean())


def noisy(x=X[:1], ids=IDS, key=KEY, copies=40, **choices):
    """Payloads of one record under 40 ids at a σ that drowns the message: 10,240 nearly fair bits."""
    sigma = choices.pop("sigma", 1e3)
    many = RecordIds(
        records=[f"{ids.records[0]}-{i}" for i in range(copies)], subjects=[ids.subjects[0]] * copies
    )
    return make(key=key, sigma=sigma, **choices).release(x.expand(copies, -1, -1, -1), many).payload


@pytest.mark.parametrize(
    "change",
    [
        {"ids": RecordIds(records=["x"], subjects=["ann"])},
        {"ids": RecordIds(records=["r0"], subjects=["bob"])},
        {"x": X[:1] + 1e-6},
        {"sigma": 1e3 + 1},
        {"bounding": Bounding(clip_norm=1.5)},
        {"key": NoiseKey(bytes(32))},
    ],
    ids=["id", "subject", "content", "sigma", "clip norm", "key"],
)
def test_anything_else_gives_independent_bits(change):
    base = noisy()
    assert agreement(base, noisy()) == 1.0
    # 10,240 independent fair bits agree in half ± 6 standard deviations (0.03) but once in 10⁹ keys.
    assert abs(agreement(base, noisy(**change)) - 0.5) < 0.03


def test_equal_content_under_two_ids_is_two_releases_and_without_ids_one():
    pair = X[:1].expand(2, -1, -1, -1)
    named = make().release(pair, RecordIds(records=["a", "b"]))
    assert named.release_ids[0] != named.release_ids[1]
    assert not torch.equal(named.payload[0], named.payload[1])
    unnamed = make().release(pair)
    assert unnamed.release_ids[0] == unnamed.release_ids[1]
    assert torch.equal(unnamed.payload[0], unnamed.payload[1])


def test_stored_bytes_are_what_a_repeated_query_sends():
    memo = InMemoryMemo()
    releaser = make(memo=memo)
    first = releaser.release(X, IDS)
    assert first.fresh == [True] * 5
    name = first.release_ids[2]
    marked = InMemoryMemo()
    marked.keep(name, bytes(32))
    again = make(memo=marked).release(X, IDS)
    assert again.fresh == [True, True, False, True, True]
    assert again.payload[2].tolist() == [0] * 32, "the stored bytes, not what would be drawn now"
    assert torch.equal(again.payload[[0, 1, 3, 4]], first.payload[[0, 1, 3, 4]])
    repeat = releaser.release(X, IDS)
    assert repeat.fresh == [False] * 5
    assert torch.equal(repeat.payload, first.payload)
    assert [d.release_id for d in repeat.debits] == first.release_ids
    assert [d.subject for d in repeat.debits] == list(IDS.subjects)


def test_a_record_twice_in_a_batch_is_fresh_once():
    released = make(memo=InMemoryMemo()).release(X[[0, 1, 0]])
    assert released.fresh == [True, True, False]


def test_a_damaged_memo_is_refused():
    memo = InMemoryMemo()
    memo.keep(make().release(X[:1]).release_ids[0], b"short")
    with pytest.raises(ConfigError, match="5 bytes for a release of 32"):
        make(memo=memo).release(X[:1])


def test_mu_is_two_c_over_sigma_and_none_without_noise():
    assert make(sigma=0.5, bounding=Bounding(clip_norm=3.0)).release(X).mu == pytest.approx(12.0)
    silent = make(key=None, sigma=None)
    released = silent.release(X)
    assert released.mu is None
    assert released.release_ids == silent.release(X).release_ids
    assert released.release_ids != make(key=None, sigma=None).release(X).release_ids, "ephemeral names"
    with pytest.raises(ConfigError, match="noise key"):
        make(key=None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sigma", [None, 1.0])
def test_records_that_are_not_finite_are_refused(bad, sigma):
    x = X.clone()
    x[3, 0, 5, 5] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        make(sigma=sigma).release(x)


def test_a_message_that_overflows_is_refused():
    with pytest.raises(InputError, match="NaN or infinite"):
        make(sigma=None).release(X * 3e38)


@pytest.mark.parametrize("x", [X[0], X[:, :2], X[:0], X.int(), X[:, :, :8]])
def test_records_of_another_kind_are_refused(x):
    with pytest.raises(InputError, match=r"\[n, 3, 16, 16\]"):
        make().release(x)


def test_wrong_ids_are_refused():
    with pytest.raises(InputError, match="expected 2 record ids"):
        make().release(X[:2], IDS)
    assert ReexportedIds is RecordIds


def test_a_backbone_in_which_records_see_each_other_is_refused():
    parts = setup()
    parts["backbone"][1].train()
    with pytest.raises(ConfigError, match="'1' is in training mode"):
        Releaser(**parts, key=KEY, memo=None)
    parts["backbone"].eval()
    releaser = Releaser(**parts, key=KEY, memo=None)
    parts["backbone"].train()
    with pytest.raises(ConfigError, match="training mode"):
        releaser.release(X)
    stateless = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, track_running_stats=False)
    ).eval()
    with pytest.raises(ConfigError, match="by its batch"):
        Releaser(**{**parts, "backbone": stateless}, key=KEY, memo=None)


def test_modules_that_are_not_the_configured_ones_are_refused():
    parts = setup()
    other = backbone()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    basis = Decomposer(
        channels=16, height=16, width=16, rank=4, block=8, keep=4, kind="pca", basis=torch.eye(16)[:, :4]
    )
    svd = Decomposer(channels=16, height=16, width=16, rank=4, block=8, keep=4, kind="svd")
    for change, name in (
        ({"backbone": other}, "backbone"),
        ({"decomposer": basis}, "weights of the basis"),
        ({"decomposer": svd}, "basis"),
        ({"message": MessageMap("all-channels", channels=16)}, "message map"),
        ({"message": MessageMap("channel-mean", channels=8)}, "channels of the offloaded stream"),
        ({"config": setup(crop=CropConfig(block=8, keep=2))["config"]}, "crop"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Releaser(**{**parts, **change}, key=KEY, memo=None)


def test_hashes_ignore_order_and_layout_but_no_value():
    one, two = torch.arange(6.0).view(2, 3), torch.ones(1)
    base = component_hash({"a": one, "b": two})
    assert base == component_hash({"b": two, "a": one.T.contiguous().T})
    for other in (
        {"a": one},
        {"a": one, "c": two},
        {"a": one.view(3, 2), "b": two},
        {"a": one + 1, "b": two},
    ):
        assert component_hash(other) != base


def test_main_input_can_be_trained_on():
    released = make().release(X)
    weight = torch.ones(1, requires_grad=True)
    (released.main_input * weight).sum().backward()
    assert weight.grad is not None
    assert not released.main_input.requires_grad


# The law of whole releases, with 3 seeded faults that the same test must catch. 600 records of 256 bits, one
# image under 600 ids. χ² over the bits with 256 degrees of freedom: 400 is exceeded once in 4·10⁷ keys.


def law_statistic(monkeypatch=None, *, sigma=0.1, clip_norm=1.0, scaled=True):
    parts = setup(sigma=sigma, bounding=Bounding(clip_norm=clip_norm))
    if not scaled:
        monkeypatch.setattr(releaser_module, "normalise", lambda m, _: m.double())
    ids = RecordIds(records=[str(i) for i in range(600)])
    bright = 3 * X[:1]  # a message of norm about 3, so that it shows where nothing scales it
    released = Releaser(**parts, key=KEY, memo=None).release(bright.expand(600, -1, -1, -1), ids)
    m = naive_message(parts, bright).double().flatten()
    law = torch.special.ndtr(m / m.norm() / 0.1)
    ones = unpack_bits(released.payload, (1, 16, 16)).flatten(1).double().sum(0)
    return float(((ones - 600 * law) ** 2 / (600 * law * (1 - law))).sum())


def test_released_frequencies_follow_the_declared_law():
    assert law_statistic() < 400


@pytest.mark.parametrize(
    "fault",
    [{"clip_norm": 2.0}, {"sigma": 0.13}, {"sigma": 0.07}, {"scaled": False}],
    ids=lambda fault: str(fault),
)
def test_a_faulty_release_fails_the_law(monkeypatch, fault):
    assert law_statistic(monkeypatch, **fault) > 600


def test_the_hash_of_a_backbone_is_of_what_it_computes():
    """Equal weights are not enough: with them alone, two messages would share their noise."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.zeros(1), persistent=False)

        def forward(self, x):
            return x + self.shift

    def stack(*extra):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *extra)

    moved = stack(Own())
    moved[1].shift += 1
    variants = [
        stack(), stack(nn.ReLU()), stack(nn.LeakyReLU()), stack(nn.LeakyReLU(0.2)), stack(nn.GELU()),
        stack(Own()), moved,
    ]  # fmt: skip
    assert len({component_hash(v.state_dict()) for v in variants}) == 1
    assert len({computation_hash(v) for v in variants}) == len(variants)
    assert computation_hash(stack(nn.ReLU())) == computation_hash(stack(nn.ReLU()))


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_how_many_records_pass_the_backbone_at_once_changes_no_bit(choices, monkeypatch):
    x = synthetic_images(21, (3, 16, 16), 8)
    whole = make(**choices).release(x)
    monkeypatch.setattr(releaser_module, "_IR_BYTES", 4 * 16 * 16 * 16 * 3)  # three records
    parts = make(**choices).release(x)
    assert torch.equal(parts.payload, whole.payload)
    assert torch.equal(parts.main_input, whole.main_input)


def test_records_pass_the_backbone_together_where_their_place_might_round_their_bits():
    passes = releaser_module.backbone_passes
    cpu = torch.device("cpu")
    assert passes(32, ir_shape=(64, 32, 32), device=cpu) == 4
    assert passes(33, ir_shape=(64, 32, 32), device=cpu) == 5
    assert passes(16, ir_shape=(64, 32, 32), device=cpu) == 1  # two passes gain nothing
    assert passes(5, ir_shape=(64, 224, 224), device=cpu) == 3
    assert passes(64, ir_shape=(64, 14, 14), device=cpu) == 1
    assert passes(64, ir_shape=(64, 32, 32), device=torch.device("cuda")) == 1
