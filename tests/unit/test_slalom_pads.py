"""One-time pads: secret, uniform, used once."""

from __future__ import annotations

import os

import pytest
import torch

from delta.errors import InternalError
from delta.methods.slalom import Slalom
from delta.methods.slalom.blinding import blind, unblind
from delta.methods.slalom.contents import layers_of, settings_of
from delta.methods.slalom.field import PRIME, centred, half_of
from delta.methods.slalom.pads import Pads, pad_bytes
from delta.methods.slalom.spec import plain_product
from delta.methods.slalom.stream import SecretStream
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded
from tests.slalom_models import SHAPE, records, zoo

BINS = 64


@pytest.fixture(scope="module")
def bundle():
    return Slalom.bundle_of(zoo())


@pytest.fixture(scope="module")
def layers(bundle):
    return layers_of(bundle, settings_of(bundle.manifest))


def _chi_squared(values, prime=PRIME, bins=BINS):
    """Against the uniform law on [0, p); its mean is bins − 1 and its variance 2·(bins − 1)."""
    counts = torch.bincount(values.flatten().to(torch.int64) * bins // prime, minlength=bins).double()
    expected = values.numel() / bins
    return float(((counts - expected) ** 2 / expected).sum())


def _surely_uniform(values, prime=PRIME, bins=BINS):
    return abs(_chi_squared(values, prime, bins) - (bins - 1)) < 7 * (2 * (bins - 1)) ** 0.5


@pytest.mark.parametrize("prime", [7, 8191, PRIME])
def test_the_stream_is_uniform_on_the_field_and_never_the_same(prime):
    stream = SecretStream()
    drawn = stream.elements(70_000, prime=prime)
    assert drawn.dtype == torch.int32
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < prime
    assert _surely_uniform(drawn, prime, min(prime, BINS))
    assert not torch.equal(drawn, stream.elements(70_000, prime=prime))
    assert not torch.equal(drawn, SecretStream().elements(70_000, prime=prime))


def test_secrets_are_in_no_text(layers):
    pads = Pads(layers)
    pads.add(1)
    pad = pads.take(0, 1)
    for thing in (pads, pad, SecretStream()):
        assert "[" not in repr(thing)
        assert "tensor" not in repr(thing)


def test_blinding_adds_the_pad_and_unblinding_takes_its_product_off(layers):
    pads = Pads(layers)
    pads.add(3)
    for index, layer in enumerate(layers):
        spec, pad = layer.spec, pads.take(index, 3)
        weight = layer.weight.to(torch.int64)
        x = torch.randn(3, spec.inputs) / layer.inverse * layer.clip / 2
        sent = blind(layer, x, pad)
        q = layer.quantise(x).to(torch.int64)
        assert torch.equal(torch.remainder(sent - pad.blinding, PRIME), torch.remainder(q, PRIME))
        products = plain_product(spec, weight, sent.to(torch.int64).view(3, *spec.input_shape))
        answer = torch.remainder(products, PRIME).to(torch.int32).view(3, -1)
        plain = plain_product(spec, weight, q.view(3, *spec.input_shape)).view(3, -1)
        assert torch.equal(centred(plain), plain)
        assert torch.equal(unblind(layer, answer, pad), layer.dequantise_(plain.float()))
        own = plain_product(spec, weight, pad.blinding.to(torch.int64).view(3, *spec.input_shape)).view(3, -1)
        assert torch.equal(torch.remainder(own - half_of(PRIME), PRIME), pad.unblinding.to(torch.int64))


def test_what_is_not_a_number_leaves_as_blinded_as_the_rest(layers):
    pads = Pads(layers)
    pads.add(200)
    layer = layers[0]
    x = torch.zeros(200, layer.spec.inputs)
    x[:, ::3], x[:, 1::3] = torch.nan, torch.inf
    sent = blind(layer, x, pads.take(0, 200))
    assert int(sent.min()) >= 0
    assert int(sent.max()) < PRIME
    assert _surely_uniform(sent)
    assert _surely_uniform(sent[:, ::3])


def test_one_record_twice_leaves_as_other_uniform_bytes(bundle):
    method = Slalom.from_bundle(bundle)
    x = torch.zeros(1, *SHAPE)
    with Recorded(
        InProcessTransport(Slalom.cloud_half(bundle.cloud_part, device=torch.device("cpu")))
    ) as cloud:
        method.prepare(cloud)
        answers = [method.infer(x).logits for _ in range(20)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    payloads = [sent.tensors[0][3] for sent in cloud.transcript]
    assert len(set(payloads)) == len(payloads) == 180
    by_layer = {}
    for sent in cloud.transcript:
        values = torch.frombuffer(bytearray(sent.tensors[0][3]), dtype=torch.int32)
        by_layer.setdefault(sent.op, []).append(values)
    assert _surely_uniform(torch.cat([value for values in by_layer.values() for value in values]))
    # Two messages about one record: their difference is as uniform as either.
    first, second = (torch.cat(by_layer["layer-0"][start::2]).to(torch.int64) for start in (0, 1))
    assert _surely_uniform(torch.remainder(first - second, PRIME))


def test_a_pad_is_handed_out_once(layers):
    pads = Pads(layers)
    pads.add(40)
    pads.add(5)
    taken = [pads.take(0, count) for count in (7, 30, 1, 6, 1)]
    assert [len(pad.blinding) for pad in taken] == [7, 30, 1, 6, 1]
    rows = torch.cat([pad.blinding for pad in taken])
    assert len(torch.unique(rows, dim=0)) == 45
    with pytest.raises(InternalError, match="too few pads"):
        pads.take(0, 1)
    assert pads.left == 0
    pads.ensure(2)
    again = pads.take(0, 2)
    assert len(torch.unique(torch.cat([rows, again.blinding]), dim=0)) == 47
    # The other layers had theirs still: nothing more was made for them.
    pads.take(1, 45)
    with pytest.raises(InternalError):
        pads.take(1, 1)


def test_bytes_of_a_pad(layers):
    pads = Pads(layers)
    pads.add(1)
    taken = [pads.take(index, 1) for index in range(len(layers))]
    assert pad_bytes(layers) == sum(pad.blinding.nbytes + pad.unblinding.nbytes for pad in taken)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_go_on_with_the_same_pads(layers):
    pads = Pads(layers[-1:])
    pads.add(2)
    child = os.fork()
    if child == 0:
        os._exit(pads.left)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pads.left == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_go_on_with_the_same_stream():
    stream = SecretStream()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, stream.elements(16).numpy().tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert len(theirs) == 64
    assert theirs != stream.elements(16).numpy().tobytes()


def test_after_a_failure_the_layers_pad_is_gone_all_the_same(bundle):
    method = Slalom.from_bundle(bundle)

    class Half:
        operations = {}  # noqa: RUF012

    method.precompute(5)
    with InProcessTransport(Half()) as transport:
        method.prepare(transport)
        prediction = method.infer(records(2))
    assert prediction.reason == "mismatch"
    assert method.pads_left == 3
