"""Freivalds' check: honest answers pass, one wrong element is caught, and the stated odds are the real ones."""

from __future__ import annotations

import os

import pytest
import torch

from delta.errors import CloudAnswerError
from delta.methods.slalom import Slalom, reference
from delta.methods.slalom.contents import layers_of, settings_of
from delta.methods.slalom.field import PRIME
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import LayerSpec, plain_product
from delta.methods.slalom.stream import SecretStream
from delta.methods.slalom.verify import Verifier, miss_bound
from delta.transport.base import Answer
from tests.clouds import ScriptedCloud, honest
from tests.slalom_models import records, zoo

CONV = LayerSpec(
    name="conv",
    kind="conv",
    input_shape=(4, 4, 3),
    output_shape=(6, 2, 3),
    kernel=(3, 3),
    stride=(2, 1),
    padding=(1, 1, 1, 1),
    groups=2,
)
LINEAR = LayerSpec(name="linear", kind="linear", input_shape=(2, 3), output_shape=(2, 5))


@pytest.fixture(scope="module")
def bundle():
    return Slalom.bundle_of(zoo())


def _layer(spec, *, seed=0, most=3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-most, most + 1, spec.weight_shape, generator=generator, dtype=torch.int16)
    ones = torch.ones(spec.channels_out)
    return QuantLayer(spec, weight, 1, 1.0, ones, torch.zeros_like(ones))


def _asked(layer, count, prime, *, seed=0):
    """A request and its right answer."""
    generator = torch.Generator().manual_seed(seed)
    sent = torch.randint(0, prime, (count, layer.spec.inputs), generator=generator, dtype=torch.int32)
    products = plain_product(
        layer.spec,
        layer.weight.to(torch.int64),
        sent.to(torch.int64).view(count, *layer.spec.input_shape),
    )
    return sent, torch.remainder(products, prime).to(torch.int32).view(count, -1)


def _passes(verifier, sent, answer):
    challenge = verifier.challenge(sent)
    try:
        verifier.check(challenge, answer)
    except CloudAnswerError:
        return False
    return True


@pytest.mark.parametrize("records_sent", [1, 31, 33, 70])
def test_right_answers_pass_for_every_kind_of_layer(bundle, records_sent):
    stream = SecretStream()
    for layer in layers_of(bundle, settings_of(bundle.manifest)):
        verifier = Verifier(layer, stream, repetitions=3)
        assert _passes(verifier, *_asked(layer, records_sent, PRIME))


@pytest.mark.parametrize("spec", [CONV, LINEAR], ids=["conv", "linear"])
@pytest.mark.parametrize("seed", range(3))
def test_one_wrong_element_anywhere_is_caught(spec, seed):
    layer = _layer(spec, seed=seed)
    verifier = Verifier(layer, SecretStream(), repetitions=1)
    sent, right = _asked(layer, 3, PRIME, seed=seed)
    for position in range(right.numel()):
        for change in (1, -1, 2**20, PRIME // 2):
            wrong = right.clone()
            wrong.view(-1)[position] = (int(right.view(-1)[position]) + change) % PRIME
            assert not _passes(verifier, sent, wrong)  # misses are likely once in 10⁷
    assert _passes(verifier, sent, right)


def test_an_answer_off_by_a_multiple_of_the_prime_is_refused():
    layer = _layer(CONV)
    verifier = Verifier(layer, SecretStream(), repetitions=2)
    sent, right = _asked(layer, 2, PRIME)
    for change in (PRIME, -PRIME):
        wrong = right.clone()
        wrong[1, 5] += change
        challenge = verifier.challenge(sent)
        with pytest.raises(CloudAnswerError, match="not in the field"):
            verifier.check(challenge, wrong)


@pytest.mark.parametrize("swap", ["records", "channels", "places", "another request's", "zeros"])
def test_right_values_in_wrong_places_are_caught(swap):
    layer = _layer(CONV)
    sent, right = _asked(layer, 3, PRIME)
    maps = right.view(3, *CONV.output_shape)
    wrong = {
        "records": maps.roll(1, dims=0),
        "channels": maps.roll(1, dims=1),
        "places": maps.flip(3),
        "another request's": _asked(layer, 3, PRIME, seed=7)[1],
        "zeros": torch.zeros_like(maps),
    }[swap]
    assert not _passes(Verifier(layer, SecretStream(), repetitions=1), sent, wrong.reshape(3, -1))


@pytest.mark.parametrize("repetitions", [1, 2])
@pytest.mark.parametrize("errors", ["one element", "rank one", "many"])
def test_the_stated_odds_hold_on_a_tiny_prime_and_are_reached(repetitions, errors):
    prime, trials = 7, 800
    layer = _layer(LINEAR)
    stream = SecretStream()
    sent, right = _asked(layer, 3, prime)
    error = torch.zeros(3, 2, 5, dtype=torch.int32)
    if errors == "one element":
        error[1, 0, 2] = 3
    elif errors == "rank one":
        error[:, 0] = torch.tensor([1, 2, 5])[:, None] * torch.tensor([3, 0, 1, 6, 2])
    else:
        error.random_(0, prime, generator=torch.Generator().manual_seed(1))
    wrong = torch.remainder(right + error.view(3, -1), prime)
    assert not torch.equal(wrong, right)
    verifier = Verifier(layer, stream, repetitions=repetitions, prime=prime)
    missed = 0
    for _ in range(trials):
        missed += _passes(verifier, sent, wrong)
        verifier.draw()
    bound = miss_bound(repetitions=repetitions, prime=prime)
    deviation = (bound * (1 - bound) / trials) ** 0.5
    assert missed / trials <= bound + 4 * deviation
    assert _passes(verifier, sent, right)
    if errors != "many":  # an error of rank one at one place is the worst: the bound but for 1/p² is reached
        likely = (2 / prime - 1 / prime**2) ** repetitions
        assert missed > 0
        assert abs(missed / trials - likely) <= 5 * (likely * (1 - likely) / trials) ** 0.5


def test_the_bound_of_the_default():
    assert miss_bound(repetitions=2) < 1.5e-14
    assert miss_bound(repetitions=1) == 2 / PRIME


def test_after_a_wrong_answer_the_secret_is_another():
    layer = _layer(CONV)
    verifier = Verifier(layer, SecretStream(), repetitions=1)
    sent, right = _asked(layer, 2, PRIME)
    before = verifier._sums.clone()
    assert _passes(verifier, sent, right)
    assert torch.equal(verifier._sums, before)
    assert not _passes(verifier, sent, torch.roll(right, 1, dims=1))
    assert not torch.equal(verifier._sums, before)


@pytest.mark.parametrize("outputs", [120_000, 1_100_000])
def test_right_answers_of_very_wide_layers_of_large_weights_pass(outputs):
    spec = LayerSpec(name="wide", kind="linear", input_shape=(2,), output_shape=(outputs,))
    layer = _layer(spec, most=1)
    layer.weight.copy_(2**14 - 1 - layer.weight.abs())
    verifier = Verifier(layer, SecretStream(), repetitions=1)
    sent, right = _asked(layer, 2, PRIME)
    for _ in range(2):
        assert _passes(verifier, sent, right)
        wrong = right.clone()
        wrong[1, outputs - 1] = (int(wrong[1, outputs - 1]) + 1) % PRIME
        assert not _passes(verifier, sent, wrong)
        verifier.draw()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_draws_secrets_of_its_own():
    layer = _layer(CONV)
    verifier = Verifier(layer, SecretStream(), repetitions=1)
    sent, right = _asked(layer, 2, PRIME)

    def secrets_of():
        factors = verifier.challenge(sent).factors
        return factors.numpy().tobytes() + verifier._sums.numpy().tobytes()

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        drawn = secrets_of()
        os.write(writer, drawn if _passes(verifier, sent, right) else b"")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    ours = secrets_of()
    factors = 8 * len(sent)
    assert len(theirs) == len(ours) > factors
    assert theirs[:factors] != ours[:factors]
    assert theirs[factors:] != ours[factors:]
    assert _passes(verifier, sent, right)


@pytest.mark.parametrize("layer", range(9))
def test_one_wrong_element_of_any_layer_ends_the_clouds_part_and_changes_no_logit(bundle, layer):
    x = records(2)
    with torch.inference_mode():
        expected = reference(bundle)(x)
    half = Slalom.cloud_half(bundle.cloud_part, device=torch.device("cpu"))
    right = honest(half)
    generator = torch.Generator().manual_seed(layer)
    for change in (1, -1, PRIME, int(torch.randint(2, PRIME, (), generator=generator))):

        def script(number, op, tensors, change=change):
            answer = right(number, op, tensors)
            if op != f"layer-{layer}":
                return answer
            y = answer.tensors["y"].clone()
            flat = y.view(-1)
            position = int(torch.randint(0, len(flat), (), generator=generator))
            moved = int(flat[position]) + change
            flat[position] = moved if abs(change) == PRIME else moved % PRIME
            return Answer({"y": y}, answer.cloud_ms, answer.bytes_up, answer.bytes_down)

        with ScriptedCloud(script) as cloud:
            method = Slalom.from_bundle(bundle)
            method.prepare(cloud)
            prediction = method.infer(x)
        assert (prediction.used_cloud, prediction.reason) == (False, "bad-answer")
        name = settings_of(bundle.manifest).layers[layer].name
        assert prediction.detail.startswith(f"layer {name!r}: the cloud's ")
        assert torch.equal(prediction.logits, expected)
        assert [sent.op for sent in cloud.transcript] == [f"layer-{i}" for i in range(layer + 1)]


def test_the_cloud_refuses_what_is_not_in_the_field(bundle):
    from delta.errors import RequestError

    half = Slalom.cloud_half(bundle.cloud_part, device=torch.device("cpu"))
    operation = half.operations["layer-0"]
    for value in (-1, PRIME):
        with pytest.raises(RequestError, match="elements of"):
            operation.run({"x": torch.full((1, 2, 10, 8), value, dtype=torch.int32)})
