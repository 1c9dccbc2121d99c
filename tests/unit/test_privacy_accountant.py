"""The accountant: independent checks against dp-accounting, and refusals."""

import math
from dataclasses import dataclass

import pytest

from delta.errors import PrivacyParameterError
from delta.privacy.accountant import GdpAccountant, label_mu
from delta.privacy.events import (
    Composed,
    Event,
    GaussianRelease,
    NonPrivateRelease,
    RandomizedResponseLabel,
    release_event,
)


@pytest.mark.parametrize(("sigma", "count"), [(7.46, 1), (1.2, 1), (8.0, 30)])
def test_within_one_percent_of_pld_and_below_rdp(sigma, count):
    pld, rdp = pytest.importorskip("dp_accounting.pld"), pytest.importorskip("dp_accounting.rdp")
    import dp_accounting

    ours = GdpAccountant(relation="replace-one").compose(release_event(sigma=sigma, clip_norm=1.0), count)
    # Replace-one moves a message by 2C: σ/2C is dp-accounting's multiplier for a sensitivity of 1.
    theirs = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma / 2.0), count)
    tight = pld.PLDAccountant().compose(theirs).get_epsilon(1e-5)
    upper = rdp.RdpAccountant().compose(theirs).get_epsilon(1e-5)
    assert ours.epsilon(1e-5) == pytest.approx(tight, rel=0.01)
    assert ours.epsilon(1e-5) < upper


def test_k_releases_cost_root_k():
    ours = GdpAccountant(relation="replace-one").compose(GaussianRelease(0.5), 16)
    assert ours.mu == 2.0
    assert GdpAccountant(relation="replace-one").mu == 0.0


def test_a_release_without_noise_costs_without_bound():
    ours = GdpAccountant(relation="replace-one").compose(
        Composed((GaussianRelease(1.0), NonPrivateRelease()))
    )
    assert math.isinf(ours.mu)
    assert math.isinf(ours.epsilon(1e-5))
    assert GdpAccountant(relation="replace-one").compose(NonPrivateRelease(), 0).mu == 0.0
    assert release_event(sigma=None, clip_norm=1.0) == NonPrivateRelease()


def test_label_and_release_compose_jointly():
    ours = GdpAccountant(relation="replace-one").compose(
        Composed((GaussianRelease(1.5), RandomizedResponseLabel(2.0)))
    )
    assert ours.mu == pytest.approx(math.hypot(1.5, label_mu(epsilon=2.0)))
    assert label_mu(epsilon=math.log(3.0)) == pytest.approx(2 * 0.6744897501960817)  # Φ⁻¹(3/4)


@dataclass(frozen=True)
class Telepathy(Event):
    """An event that no accountant knows."""


@pytest.mark.parametrize(
    "event",
    [
        Telepathy(),
        Composed((GaussianRelease(1.0), Telepathy())),
        Composed((NonPrivateRelease(), Composed((Telepathy(),), 0))),
    ],
)
def test_unknown_events_are_refused_before_anything_changes(event):
    ours = GdpAccountant(relation="replace-one").compose(GaussianRelease(1.0))
    with pytest.raises(PrivacyParameterError, match=r"Telepathy.*known are Composed, GaussianRelease"):
        ours.compose(event)
    assert ours.mu == 1.0
    assert ours.ledger == ((GaussianRelease(1.0), 1),)


def test_the_relation_is_mandatory_and_replace_one():
    with pytest.raises(TypeError):
        GdpAccountant()
    with pytest.raises(PrivacyParameterError, match="add-or-remove"):
        GdpAccountant(relation="add-or-remove")


@pytest.mark.parametrize("mu", [0.0, -1.0, math.inf, math.nan, True])
def test_a_gaussian_release_needs_a_finite_mu(mu):
    with pytest.raises(PrivacyParameterError, match="mu of a Gaussian release"):
        GaussianRelease(mu)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 701.0, math.nan])
def test_a_labels_epsilon_is_bounded(epsilon):
    with pytest.raises(PrivacyParameterError, match="epsilon of a label"):
        RandomizedResponseLabel(epsilon)
    with pytest.raises(PrivacyParameterError, match="epsilon of a label"):
        label_mu(epsilon=epsilon)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_a_count_is_a_whole_number(count):
    with pytest.raises(PrivacyParameterError, match="whole number"):
        GdpAccountant(relation="replace-one").compose(GaussianRelease(1.0), count)
