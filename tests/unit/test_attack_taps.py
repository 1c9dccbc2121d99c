"""What an attacker sees: the bits that really leave, their law, and looks that are worth something or nothing."""

import pytest
import torch

from delta.attacks.matching import match_scores
from delta.attacks.release_tap import ReleaseTap, victim_key
from delta.attacks.tap import RandomBitsTap, RawIrTap, generator_on
from delta.attacks.taps import tap_names, tap_of
from delta.errors import BundleError, ConfigError, MethodError
from delta.methods.base import RecordIds
from delta.methods.delta.private import DeltaMethod
from delta.methods.registry import method_class
from delta.release.packing import unpack_bits

CPU = torch.device("cpu")


def _release(trained, sigma):
    """The tap of a bundle, its noise another."""
    tap = ReleaseTap(trained.bundles["noise"])
    tap.release = tap.release.model_copy(update={"sigma": sigma})
    return tap


def _whole(trained, method, **settings):
    return tap_of(method_class(method).bundle_of(trained.whole, **settings), method)


@pytest.mark.parametrize("name", ["none", "noise", "principal", "svd"])
def test_the_release_tap_shows_the_bits_that_leave(trained, name):
    bundle, x, ids = trained.bundles[name], trained.x[:6], trained.test.ids[:6]
    tap = ReleaseTap(bundle)
    seen = tap.capture(x, ids, seed=3)
    sent = DeltaMethod(bundle, key=victim_key(3)).infer(x, RecordIds(records=ids)).extras["payload"]
    assert seen.shape == (6, *tap.shape)
    assert torch.equal(seen, unpack_bits(sent, tap.shape).float() * 2 - 1)
    assert tap.noisy == (name == "noise")


def test_simulated_bits_have_the_mechanisms_law(trained):
    tap, x = _release(trained, 0.05), trained.x[:4]
    seen = (tap.simulate(x, looks=4000, generator=generator_on(CPU, 0)) + 1) / 2
    expected = torch.special.ndtr(tap.messages(x) / 0.05)
    error = (seen - expected).abs() / (expected * (1 - expected) / 4000).sqrt().clamp_min(1e-3)
    assert float(error.max()) < 5.5  # the largest of 1,024 standard normal values
    captured = (tap.capture(x, trained.test.ids[:4], looks=400) + 1) / 2
    error = (captured - expected).abs() / (expected * (1 - expected) / 400).sqrt().clamp_min(3e-3)
    assert float(error.max()) < 5.5


def test_asking_again_under_one_id_shows_nothing_new_and_under_others_does(trained):
    tap, x, ids = _release(trained, 1.2), trained.x[:8], trained.test.ids[:8]
    once = tap.capture(x, ids, looks=1)
    assert torch.equal(tap.capture(x, ids, looks=20, fresh=False), once)
    fresh = tap.capture(x, ids, looks=20)
    assert not torch.equal(fresh, once)
    assert set(once.unique().tolist()) == {-1.0, 1.0}
    assert len(fresh.unique()) > 5


def test_fresh_looks_raise_matching_where_one_fails_and_stored_ones_do_not(trained):
    tap, x, ids = _release(trained, 1.2), trained.x, trained.test.ids
    templates, truth = tap.templates(x), torch.arange(len(x))

    def top1(looks, fresh):
        seen = tap.capture(x, ids, looks=looks, fresh=fresh).flatten(1)
        believed = looks if fresh else 1
        return match_scores(seen, templates, truth, lambda a, b: tap.scores(a, b, looks=believed)).top1

    once = top1(1, True)
    assert once < 12
    assert top1(150, False) == once
    assert top1(150, True) > 50


def test_without_noise_all_looks_are_one(trained):
    tap, x, ids = ReleaseTap(trained.bundles["none"]), trained.x[:5], trained.test.ids[:5]
    assert torch.equal(tap.capture(x, ids, looks=3), tap.capture(x, ids, seed=9))
    assert torch.equal(tap.simulate(x, looks=1, generator=generator_on(CPU, 0)), tap.capture(x, ids))


def test_the_positive_control_is_the_ir_and_the_negative_one_knows_nothing(trained):
    raw = RawIrTap(trained.bundles["none"])
    assert torch.equal(raw.capture(trained.x[:3], ["a", "b", "c"]), trained.private.backbone(trained.x[:3]))
    bits = RandomBitsTap((1, 16, 16))
    seen = bits.capture(trained.x, trained.test.ids)
    assert torch.equal(seen, bits.capture(torch.zeros_like(trained.x), trained.test.ids))
    assert float(seen.mean().abs()) < 0.03
    assert not torch.equal(seen, bits.simulate(trained.x, looks=1, generator=generator_on(CPU, 0)))
    assert set(bits.capture(trained.x, trained.test.ids, looks=2).unique().tolist()) == {-1.0, 0.0, 1.0}


# Other methods


def test_a_remote_method_shows_the_record_itself(trained):
    tap = _whole(trained, "cloud-only")
    assert torch.equal(tap.capture(trained.x[:5], list("abcde")), trained.x[:5])
    assert not tap.noisy


def test_noised_records_are_stored_and_other_ids_get_other_noise(trained):
    tap, x = _whole(trained, "dp-input", epsilon=8.0), trained.x[:5]
    once = tap.capture(x, list("abcde"))
    assert torch.equal(tap.capture(x, list("abcde"), looks=1), once)
    torch.testing.assert_close(tap.capture(x, list("abcde"), looks=4, fresh=False), once)
    assert not torch.allclose(tap.capture(x, list("abcde"), looks=4), once)
    far, near = tap.capture(x, list("abcde"), looks=60), tap.templates(x).view_as(x)
    assert float((far - near).norm()) < float((once - near).norm()) / 4  # the noise averages out: √60


def test_blinded_elements_are_uniform_and_new_each_time(trained):
    tap, x = _whole(trained, "slalom"), trained.x[:40]
    seen = tap.capture(x, trained.test.ids[:40])
    assert seen.shape == x.shape
    assert float(seen.min()) >= -1
    assert float(seen.max()) <= 1
    assert abs(float(seen.mean())) < 0.03  # of 10,240 values with standard deviation 0.577
    assert float(seen.std()) == pytest.approx(3**-0.5, abs=0.02)
    again = tap.capture(x, trained.test.ids[:40], fresh=False)
    correlation = torch.corrcoef(torch.stack([seen.flatten(), again.flatten(), x.flatten()]))
    assert float((correlation - torch.eye(3)).abs().max()) < 0.05


def test_residuals_of_three_leg_race_show_the_record(trained):
    tap, x, ids = _whole(trained, "three-leg-race"), trained.x, trained.test.ids
    seen = tap.capture(x, ids)
    assert seen.shape == (100, 1 + 8, 16, 16)  # what the first convolution reads, and what the second does
    assert torch.equal(tap.capture(x, ids, looks=2, fresh=False), seen)
    found = match_scores(
        seen.flatten(1), tap.templates(x), torch.arange(100), lambda a, b: tap.scores(a, b, looks=1)
    )
    assert found.top1 > 90


def test_blinding_defeats_matching_and_plain_records_do_not(trained):
    truth = torch.arange(100)
    for method, low, high in (("slalom", 0, 8), ("cloud-only", 100, 100)):
        tap = _whole(trained, method)
        seen = tap.capture(trained.x, trained.test.ids).flatten(1)
        found = match_scores(
            seen, tap.templates(trained.x), truth, lambda a, b, tap=tap: tap.scores(a, b, looks=1)
        )
        assert low <= found.top1 <= high


# What has no tap


def test_every_bundle_has_its_own_taps_and_no_others(trained):
    assert tap_names(trained.bundles["none"]) == ("release", "raw-ir", "random-bits")
    whole = method_class("cloud-only").bundle_of(trained.whole)
    assert tap_names(whole) == ("cloud-only", "raw-input", "random-bits")
    with pytest.raises(ConfigError, match=r"unknown tap 'release'.*cloud-only, raw-input, random-bits"):
        tap_of(whole, "release")
    with pytest.raises(BundleError, match="use the tap 'cloud-only'"):
        ReleaseTap(whole)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("private-only", {}, "sends nothing"),
        ("he", {"mode": "last-layer"}, "ciphertext"),
    ],
)
def test_what_cannot_be_attacked_is_said(trained, method, settings, words):
    with pytest.raises(MethodError, match=words):
        _whole(trained, method, **settings)
