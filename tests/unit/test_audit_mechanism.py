"""The audited run from image to packet: the honest mechanism stands, every seeded fault falls."""

from dataclasses import replace

import pytest
import torch

from delta.attacks.audit.audit import audit_bundle, check_auditable
from delta.attacks.audit.authors import nominal_mu, paper_code
from delta.attacks.audit.capture import CapturingTransport, SilentCloud, parse_packets
from delta.attacks.audit.checks import Tally, bit_probabilities
from delta.attacks.audit.faults import FAULTS, fault_of, norm_fault
from delta.attacks.audit.mechanism import audited_packets
from delta.attacks.audit.network import audited_bundle
from delta.attacks.audit.pair import bounded_messages, exact_pair, release_of, searched_pair
from delta.errors import BundleError, ConfigError, PrivacyParameterError, RequestError
from delta.methods.delta.parts import load_private_parts
from delta.privacy.gaussian import mu_of
from delta.wire.predict import PredictStreamRequest


@pytest.fixture(scope="module")
def bundle():
    return audited_bundle(epsilon=4.0, delta=1e-5)


@pytest.fixture(scope="module")
def parts(bundle):
    return load_private_parts(bundle, allowed={bundle.manifest.architecture.target})


def test_the_pairs_messages_are_plus_and_minus_c_in_one_bit(bundle, parts):
    pair = exact_pair(parts, release_of(bundle))
    first, second = pair.messages
    assert torch.equal(first, -second)
    assert first.abs().max() == 1.0
    assert int((first != 0).sum()) == 1
    assert pair.reached == 1.0
    assert pair.to_json() == {"kind": "exact", "reached": 1.0, "bits": 64, "in_one_bit": 1.0}
    mates = bounded_messages(
        parts, release_of(bundle), release_of(bundle).input.preprocess(pair.mate.repeat(2, 1, 1, 1))
    )
    assert not mates.any()


def test_the_honest_mechanism_is_not_rejected(bundle):
    found = audit_bundle(bundle, samples=3000, searched=False)
    assert not found.rejected
    assert not found.deviates
    assert 0.6 * found.mu < found.bound.mu < found.mu
    assert found.verdict.startswith("not rejected")
    assert "no proof" in found.verdict
    assert "private" not in found.verdict
    assert found.epsilon == pytest.approx(4.0)
    assert found.mu == pytest.approx(mu_of(epsilon=4.0, delta=1e-5))


@pytest.mark.parametrize("name", FAULTS)
def test_every_seeded_fault_is_rejected(bundle, name):
    samples = {"fresh-retry": 6000, "batch-scale": 4000}.get(name, 2000)
    found = audit_bundle(bundle, samples=samples, fault=fault_of(name), searched=False)
    assert found.rejected
    assert found.verdict.startswith("rejected")
    assert found.checks["retry"].passed == (name != "fresh-retry")
    assert found.checks["independence"].passed == (name != "fixed-seed")


@pytest.mark.parametrize("name", [*(name for name in FAULTS if name != "fixed-seed"), "norm-x1.5"])
def test_the_law_that_power_is_simulated_from_is_the_captured_one(bundle, parts, name):
    fault = norm_fault(1.5) if name == "norm-x1.5" else fault_of(name)
    release = release_of(bundle)
    pair = exact_pair(parts, release)
    chunks = list(audited_packets(bundle, pair, samples=3000, seed=1, fault=fault))
    first, bits, again = (
        torch.cat([getattr(c, part) for c in chunks]) for part in ("first", "bits", "again")
    )
    at = int(pair.messages[0].argmax())
    p = float(bit_probabilities(fault.norm * pair.messages[:1], release.sigma)[0, at])
    for mask, chance in ((first, p), (~first, 1 - p)):
        rate = float(bits[mask][:, at].double().mean())
        assert abs(rate - chance) < 4 * (chance * (1 - chance) / 3000) ** 0.5
    agree = float((bits[:, at] == again[:, at]).double().mean())
    assert (agree == 1.0) != fault.fresh


def test_a_retry_sends_the_same_bytes_from_the_memo_and_after_a_restart(bundle, parts):
    pair = exact_pair(parts, release_of(bundle))
    chunks = list(audited_packets(bundle, pair, samples=7000, seed=0))
    assert [chunk.restarted for chunk in chunks] == [False, True]
    for chunk in chunks:
        assert torch.equal(chunk.bits, chunk.again)
    first = torch.cat([chunk.first for chunk in chunks])
    assert (int(first.sum()), int((~first).sum())) == (7000, 7000)


def test_bits_that_never_vary_are_a_defect_but_no_shared_noise(bundle, parts):
    pair = exact_pair(parts, release_of(bundle))
    tally = Tally(bit_probabilities(pair.messages, release_of(bundle).sigma))
    for chunk in audited_packets(bundle, pair, samples=400, seed=0):
        constant = torch.zeros_like(chunk.bits)
        tally.add(replace(chunk, packed=torch.zeros_like(chunk.packed), bits=constant, again=constant))
    assert tally.within[0] > 100
    assert tally.across[0] > 100
    assert tally.independence(alpha=0.005).passed
    assert not tally.law(alpha=0.005).passed
    assert tally.retry().passed


def test_noise_that_only_neighbours_share_is_found(bundle, parts):
    pair = exact_pair(parts, release_of(bundle))
    tally = Tally(bit_probabilities(pair.messages, release_of(bundle).sigma))
    for chunk in audited_packets(bundle, pair, samples=400, seed=0):
        packed = chunk.packed.clone()
        for side in (chunk.first, ~chunk.first):
            rows = side.nonzero().flatten()[:40]
            packed[rows[1::2]] = packed[rows[0::2]]
        tally.add(replace(chunk, packed=packed))
    assert not tally.independence(alpha=0.005).passed


@pytest.mark.parametrize("fault", [None, FAULTS["fresh-retry"]])
def test_the_same_seed_gives_the_same_audit(bundle, fault):
    one, two = (
        audit_bundle(bundle, samples=300, searched=False, seed=5, fault=fault).to_json() for _ in range(2)
    )
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_captured_bytes_are_messages_of_the_stream(bundle):
    release = release_of(bundle)
    bits = torch.randint(0, 256, (5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with CapturingTransport(SilentCloud(release, classes=2), release=release) as transport:
        answers = [
            transport.submit("predict", {"bits": part}, deadline_s=10) for part in (bits[:2], bits[2:])
        ]
        assert [answer.result().tensors["logits"].shape for answer in answers] == [(2, 2), (3, 2)]
        assert transport.handshake_bytes[0] > 0
    message = PredictStreamRequest.FromString(transport.packets[1])
    assert (message.first_id, message.count, message.bits) == (2, 3, bits[2:].numpy().tobytes())
    packed, unpacked = parse_packets(transport.packets, release)
    assert torch.equal(packed, bits)
    assert unpacked.shape == (5, 64)
    assert int(unpacked[0, 0]) == int(bits[0, 0]) >> 7
    with pytest.raises(RequestError, match="a packet is lost"):
        parse_packets(transport.packets[1:], release)
    with pytest.raises(RequestError, match="no message"):
        parse_packets([b"\xff\xff"], release)


def test_a_claim_that_no_outcome_could_reject_is_refused():
    with pytest.raises(ConfigError, match=r"unauditable at n = 1,000.*samples are needed"):
        check_auditable(6.0, samples=1000, confidence=0.95)
    check_auditable(6.0, samples=10_000, confidence=0.95)
    with pytest.raises(ConfigError, match="confidence"):
        check_auditable(1.0, samples=1000, confidence=1.0)


def test_an_unknown_fault_is_named():
    with pytest.raises(ConfigError, match="no-clip"):
        fault_of("nothing")


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
def test_the_published_codes_mechanism_is_rejected_by_far(bundle, noise):
    other = paper_code(epsilon=1.0, delta=1e-5, noise=noise, seed=0)
    found = audit_bundle(bundle, samples=1000, other=other, searched=False)
    assert found.rejected
    assert found.mu == nominal_mu(epsilon=1.0, delta=1e-5, noise=noise)
    assert found.bound.mu > 3 * found.mu
    assert found.epsilon == 1.0
    assert found.fault is None
    assert found.checks == {}
    assert "from its description" in found.to_json()["mechanism"]


@pytest.mark.parametrize("name", ["noise", "svd"])
def test_the_pair_of_a_bundle_is_searched_through_its_backbone(trained, name):
    bundle = trained.bundles[name]
    release = release_of(bundle)
    own = load_private_parts(bundle, allowed={bundle.manifest.architecture.target})
    pair = searched_pair(own, release, seed=0)
    assert pair.kind == "searched"
    assert 0.0 <= float(pair.images.min()) <= float(pair.images.max()) <= 1.0
    assert pair.messages.norm(dim=1).max() <= release.bounding.clip_norm * (1 + 1e-9)
    assert pair.reached > (0.8 if release.sigma else 0.5)


def test_a_bundle_is_audited_as_it_is(trained):
    found = audit_bundle(trained.bundles["noise"], samples=600)
    assert not found.rejected
    assert not found.deviates
    assert found.mu == pytest.approx(mu_of(epsilon=8.0, delta=1e-5))
    doubled = audit_bundle(trained.bundles["noise"], samples=600, fault=norm_fault(3.0))
    assert doubled.bound.mu > found.bound.mu


def test_a_bundle_without_noise_or_release_has_nothing_to_audit(trained):
    with pytest.raises(PrivacyParameterError, match="noise: none"):
        audit_bundle(trained.bundles["none"], samples=200)
    whole = trained.bundles["none"]
    bare = type(whole)(whole.manifest.model_copy(update={"release": None}), whole.facts, {}, {})
    with pytest.raises(BundleError, match="no release to audit"):
        audit_bundle(bare, samples=200)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_samples_catch_a_norm_that_is_half_too_large():
    bundle = audited_bundle(epsilon=1.0, delta=1e-5)
    assert audit_bundle(bundle, samples=100_000, fault=norm_fault(1.5), searched=False).rejected
    honest = audit_bundle(bundle, samples=100_000, searched=False)
    assert not honest.rejected
    assert honest.bound.mu > 0.22
