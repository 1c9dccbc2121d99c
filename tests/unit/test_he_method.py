"""The method `he` on real digits: encrypted, computed, decrypted, and nothing else on the wire."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from delta.bundle.store import CloudPart, load_bundle, save_bundle
from delta.errors import (
    BundleError,
    CloudError,
    ConfigError,
    InputError,
    RequestError,
    TrainingUnsupportedError,
)
from delta.methods.he.cloud import EVALUATE, KEYS, HeCloud
from delta.methods.he.keys import Keys, new_session
from delta.methods.he.method import Encrypted
from delta.methods.he.scheme import library
from delta.methods.schema import run_operation
from delta.methods.whole import WholeModel
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest
from tests.he_digits import square_digits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(trained):
    """Depth 3."""
    return Encrypted.bundle_of(square_digits(trained))


@pytest.fixture(scope="module")
def last(trained):
    return Encrypted.bundle_of(trained.whole, mode="last-layer")


def asked(bundle, x, *, half=None):
    method = Encrypted.from_bundle(bundle)
    with InProcessTransport(half or Encrypted.cloud_half(bundle.cloud_part, device=CPU)) as transport:
        method.prepare(transport, deadline_s=120)
        return method.infer(x), method


def _error(bundle):
    """The error that the README states."""
    return 2.0 ** (25 - bundle.manifest.settings["ring"]["precision"])


def _faithful(bundle, model, x):
    prediction, _ = asked(bundle, x)
    with torch.no_grad():
        expected = model.module(x)
    assert prediction.used_cloud, prediction.detail
    assert float((prediction.logits - expected).abs().max()) < _error(bundle)
    assert float((prediction.logits.argmax(1) == expected.argmax(1)).float().mean()) >= 0.99


def test_decrypted_logits_are_those_of_the_plain_network(trained, network):
    _faithful(network, square_digits(trained), trained.x[:12])


def test_a_deeper_network_fits_the_same_ring_at_a_lower_precision(trained):
    model = square_digits(trained, hidden=16)
    bundle = Encrypted.bundle_of(model)
    assert bundle.manifest.settings["ring"]["degree"] == 8192
    assert bundle.manifest.settings["ring"]["precision"] == 28
    _faithful(bundle, model, trained.x[:4])


def test_the_last_layer_alone_of_any_model(trained, last):
    assert last.manifest.settings["ring"]["degree"] == 4096
    assert set(last.cloud) == {"0.weight", "0.bias"}
    _faithful(last, trained.whole, trained.x)


@pytest.mark.slow
def test_every_test_digit_keeps_its_class(trained):
    for hidden in (0, 16):
        model = square_digits(trained, hidden=hidden)
        _faithful(Encrypted.bundle_of(model), model, trained.x)


def test_more_precision_means_less_error(trained):
    model = square_digits(trained)
    x = trained.x[:2]
    errors = []
    for precision in (24, 38):
        bundle = Encrypted.bundle_of(model, precision=precision)
        with torch.no_grad():
            errors.append(float((asked(bundle, x)[0].logits - model.module(x)).abs().max()))
    assert errors[1] < errors[0] / 100


def test_keys_go_once_and_their_bytes_stand_apart(trained, network):
    method = Encrypted.from_bundle(network)
    with Recorded(InProcessTransport(Encrypted.cloud_half(network.cloud_part, device=CPU))) as transport:
        method.prepare(transport, deadline_s=60)
        assert transport.transcript == []
        first, second = (method.infer(trained.x[:2]) for _ in range(2))
    ops = [sent.op for sent in transport.transcript]
    keys = ops.count(KEYS)
    assert ops == [KEYS] * keys + [EVALUATE] * 4
    assert (first.cost.round_trips, second.cost.round_trips) == (keys + 1, 1)  # records go together
    assert first.extras["setup_bytes"] == method.setup_bytes
    assert method.setup_bytes[0] > keys * 300_000
    assert second.extras["setup_bytes"] == (0, 0)
    assert abs(first.cost.bytes_up - second.cost.bytes_up) < 10_000
    assert first.cost.bytes_up < 500_000


def test_nothing_but_fresh_ciphertexts_and_public_keys_leaves(trained, network, monkeypatch, tmp_path):
    seal = library()

    def refuse(*_):
        raise AssertionError("a secret key was serialised")

    monkeypatch.setattr(seal.SecretKey, "save", refuse)
    method = Encrypted.from_bundle(network)
    with Recorded(InProcessTransport(Encrypted.cloud_half(network.cloud_part, device=CPU))) as transport:
        method.prepare(transport, deadline_s=60)
        for _ in range(2):
            method.infer(torch.cat([trained.x[:1]] * 2))
    queries = [
        {name: data for name, _, _, data in sent.tensors}
        for sent in transport.transcript
        if sent.op == EVALUATE
    ]
    assert len({query["x"] for query in queries}) == 4  # all of one record
    assert len({query["session"] for query in queries}) == 1
    for sent in transport.transcript:
        names = {row[0] for row in sent.tensors}
        assert names == ({"session", "element", "key"} if sent.op == KEYS else {"session", "x"})
    keys = method._keys
    assert isinstance(keys, Keys)
    assert repr(keys) == "Keys(secret)"
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not serialised"):
            escape(keys)
    save_bundle(network, tmp_path / "bundle")
    stored = load_bundle(tmp_path / "bundle")
    assert set(stored.private) == set(square_digits(trained).module.state_dict())
    assert set(stored.cloud) == {f"{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}


def test_the_public_keys_do_not_decrypt(trained, last):
    """Another secret key reads noise where the right one reads logits."""
    method = Encrypted.from_bundle(last)
    with Recorded(InProcessTransport(Encrypted.cloud_half(last.cloud_part, device=CPU))) as transport:
        method.prepare(transport, deadline_s=60)
        logits = method.infer(trained.x[:1]).logits
        other = Encrypted.from_bundle(last)
        other.prepare(transport, deadline_s=60)
        answers = []
        read = method._logits
        method._logits = lambda tensors, keys: answers.append(tensors) or read(tensors, keys)
        method.infer(trained.x[:1])
    stranger = other._logits(answers[0], other._keys)
    assert float((stranger - logits).abs().min()) > 0.5


def test_a_cloud_that_forgets_gets_the_keys_again_once(trained, last):
    half = HeCloud(last.cloud_part, sessions=1, in_use_s=0)
    one, two = Encrypted.from_bundle(last), Encrypted.from_bundle(last)
    x = trained.x[:2]
    with Recorded(InProcessTransport(half)) as transport:
        for method in (one, two):
            method.prepare(transport, deadline_s=60)
            assert method.infer(x).used_cloud
        before = len(transport.transcript)
        again = one.infer(x)
        ops = [sent.op for sent in transport.transcript[before:]]
    assert again.used_cloud
    assert again.cost.round_trips == len(ops) - 2  # two records go together, twice
    assert ops[:2] == [EVALUATE] * 2
    assert ops[2:] == [KEYS] * (len(ops) - 4) + [EVALUATE] * 2
    assert half._sessions.counts == (1, 0)


def test_a_cloud_that_always_forgets_is_not_asked_forever(trained, last):
    half = Encrypted.cloud_half(last.cloud_part, device=CPU)
    serve = honest(half)

    def forgetful(number, op, tensors):
        return (
            RequestError("the keys of this session are not here")
            if op == EVALUATE
            else serve(number, op, tensors)
        )

    with ScriptedCloud(forgetful) as cloud:
        method = Encrypted.from_bundle(last)
        method.prepare(cloud, deadline_s=10)
        for _ in range(2):
            before = len(cloud.transcript)
            prediction = method.infer(trained.x[:1])
            assert not prediction.used_cloud
            assert prediction.reason == "mismatch"
            assert prediction.cost.round_trips == len(cloud.transcript) - before < 20
    torch.testing.assert_close(prediction.logits, trained.whole.module(trained.x[:1]))


def test_bad_requests_are_refused_by_the_cloud(trained, last):
    half = HeCloud(last.cloud_part, sessions=2)
    method = Encrypted.from_bundle(last)
    with ScriptedCloud(honest(half)) as cloud:
        method.prepare(cloud, deadline_s=10)
        assert method.infer(trained.x[:1]).used_cloud
        keys = method._keys.public
        good = {"session": method._session, "x": method._keys.encrypted(torch.zeros(2048))}
    run_operation(half, EVALUATE, good)
    junk = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    key = {"session": new_session(), **keys[0]}
    for op, tensors, words in [
        (EVALUATE, {**good, "x": junk}, "no encrypted record"),
        (EVALUATE, {**good, "x": good["x"][:-7]}, "no encrypted record"),
        (EVALUATE, {**good, "x": keys[0]["key"]}, "no encrypted record"),
        (EVALUATE, {**good, "session": new_session()}, "keys of this session are not here"),
        (EVALUATE, {**good, "session": good["session"][:15]}, "expected"),
        (KEYS, {**key, "key": junk}, "no public key"),
        (KEYS, {**key, "key": keys[1]["key"]}, "another key than"),
        (KEYS, {**key, "element": torch.tensor([2**40 + 1])}, "no rotation of this circuit"),
        (KEYS, {**key, "element": torch.tensor([-3])}, "no rotation of this circuit"),
        (KEYS, {**key, "key": good["x"]}, "no public key"),
    ]:
        with pytest.raises(RequestError, match=words) as caught:
            run_operation(half, op, tensors)
        assert "\n" not in str(caught.value)
    run_operation(half, EVALUATE, good)
    for _ in range(5):
        run_operation(half, KEYS, {**key, "session": new_session()})
    run_operation(half, EVALUATE, good)
    assert half._sessions.counts == (1, 5)


def test_records_out_of_the_declared_range_are_refused(trained, network, last):
    with ScriptedCloud(honest(Encrypted.cloud_half(network.cloud_part, device=CPU))) as cloud:
        method = Encrypted.from_bundle(network)
        method.prepare(cloud)
        with pytest.raises(InputError, match="range that the manifest declares"):
            method.infer(trained.x[:1] * 1e3)
        other = Encrypted.from_bundle(last)
        other.prepare(cloud)
        with pytest.raises(InputError, match="convert with more integer_bits"):
            other.infer(trained.x[:1] * 1e6)
    assert cloud.transcript == []


def test_settings_that_cannot_be_met_are_refused(trained):
    model = square_digits(trained, hidden=16)
    for settings, words in [
        ({"precision": 10}, "20 to 50 bits"),
        ({"integer_bits": 5}, "give more integer_bits"),
        ({"mode": "all"}, "none of network, last-layer"),
        ({"depth": 3}, "no setting depth"),
        ({"precision": 50, "integer_bits": 11}, "at most 60 fit"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Encrypted.bundle_of(model, **settings)


def test_weights_that_vanish_at_the_precision_are_refused(trained):
    model = square_digits(trained)
    module = copy.deepcopy(model.module)
    module[0].weight.data[1] = 0
    module.target, module.arguments = model.module.target, model.module.arguments
    with pytest.raises(BundleError, match="weights are all zero at"):
        Encrypted.bundle_of(WholeModel.of(module, input=model.input))


def test_a_manifest_that_lies_is_refused(network):
    part = network.cloud_part
    settings = part.manifest.settings
    for changed, words in [
        ({"ring": {**settings["ring"], "degree": 4096}}, "not 128-bit secure"),
        ({"ring": {**settings["ring"], "degree": 1 << 20}}, "degree must be one of"),
        ({"widths": [64, 11]}, "names 10 classes, and its circuit ends with 11"),
        ({"widths": [63, 10]}, "the next layer takes"),
        ({"layer": "fc"}, "layer names the last layer"),
        ({"extra": 1}, "extra"),
    ]:
        manifest = part.manifest.resealed(settings={**settings, **changed})
        with pytest.raises(BundleError, match=words):
            HeCloud(CloudPart(manifest, part.cloud))
    for name, weight in (("0.weight", part.cloud["0.weight"][:-1]), ("1.bias", torch.zeros(9))):
        with pytest.raises(BundleError, match="do not fit the manifest"):
            HeCloud(CloudPart(part.manifest, {**part.cloud, name: weight}))


def test_training_is_refused_with_the_reason(trained, network):
    with pytest.raises(TrainingUnsupportedError, match="backward pass under encryption"):
        Encrypted.from_bundle(network).train_step(trained.x[:2], trained.test.y[:2])


def test_without_tenseal_the_error_says_what_to_install(network, monkeypatch):
    import sys

    from delta.errors import MethodError

    monkeypatch.setitem(sys.modules, "tenseal.sealapi", None)
    with pytest.raises(MethodError, match="install delta-split\\[baselines\\]"):
        Encrypted.cloud_half(network.cloud_part, device=CPU)
    assert issubclass(MethodError, Exception)
    assert not issubclass(MethodError, CloudError)
