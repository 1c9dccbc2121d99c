"""`dp-input`: an honest σ, a bound that holds, noise of the right law, keyed, stored, and debited first."""

import math

import mpmath
import numpy as np
import pytest
import torch

from delta.bundle.store import Bundle
from delta.errors import (
    BudgetExceededError,
    BundleError,
    CloudError,
    ConfigError,
    InputError,
    PrivacyParameterError,
    TrainingUnsupportedError,
)
from delta.methods.base import RecordIds
from delta.methods.dp_input import DpInput, InputNoise, noise_of, privacy_claim
from delta.methods.dp_input.release import RecordReleaser
from delta.methods.grid_noise import gaussian_on_grid, grid_of, normal_of
from delta.methods.stepping import StepPlan
from delta.privacy.ledger import InMemoryLedger
from delta.release.bounding import clip, normalise
from delta.release.config import Bounding, InputSpec
from delta.release.ids import identities_of
from delta.release.memo import InMemoryMemo
from delta.release.noise import NoiseKey
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest

KEY = NoiseKey(bytes(range(32)))
SHAPE = (1, 4, 4)
INPUT = InputSpec(shape=SHAPE, mean=(0.0,), std=(1.0,))
X = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
IDS = RecordIds(["a", "b", "c", "d"], ["ann", "ann", "bob", "cy"])
PLAN = StepPlan(steps=8, learning_rate=1e-3)


def noise(*, epsilon=2.0, delta=1e-5, kind="normalise", clip_norm=3.0):
    return InputNoise.of(epsilon=epsilon, delta=delta, bounding=Bounding(kind=kind, clip_norm=clip_norm))


def releaser(key=KEY, memo=None, **settings):
    return RecordReleaser(noise(**settings), INPUT, key=key, memo=memo)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 40.0])
def test_sigma_is_what_the_exact_gaussian_mechanism_needs(epsilon, delta):
    found = noise(epsilon=epsilon, delta=delta, clip_norm=0.7)
    with mpmath.workdps(60):
        mu = mpmath.mpf(2) * mpmath.mpf(0.7) / mpmath.mpf(found.sigma)
        spent = mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)
        assert spent <= delta * (1 + mpmath.mpf("1e-9"))
        assert spent >= delta * (1 - mpmath.mpf("1e-6"))  # and no more noise than that


@pytest.mark.parametrize("kind", ["normalise", "clip"])
def test_every_record_is_bounded_whatever_its_scale(kind):
    x = torch.cat([X, X * 1e30, X * 1e-38, torch.zeros(1, *SHAPE), X.abs().clamp(0.2, 0.3)])
    names = RecordIds([str(i) for i in range(len(x))])
    found, made = releaser(kind=kind), noise(kind=kind)
    payload = found.release(x, names).payload.flatten(1).double()
    identities = identities_of(x, names, release_hash=made.release_hash(INPUT), mechanism=noise().mechanism)
    drawn = torch.stack([normal_of(KEY.uniforms(one, 16)) for one in identities]) * made.sigma
    bounded = payload - drawn  # what the noise was added to, up to half a cell a value
    assert float(bounded.norm(dim=1).max()) <= 3.0 + 4 * grid_of(made.sigma) / 2
    expected = (normalise if kind == "normalise" else clip)(x, 3.0).flatten(1)
    torch.testing.assert_close(bounded, expected, rtol=0, atol=grid_of(made.sigma) / 2 * (1 + 1e-6))
    assert float(expected[12].abs().max()) == 0  # a zero record stays zero, and its noise is like any other's
    assert float(expected.norm(dim=1).max()) <= 3.0 * (1 + 1e-12)


def test_the_same_release_has_the_same_bytes_and_any_other_has_independent_noise():
    zero = torch.zeros(2, 1, 64, 64)
    spec = InputSpec(shape=(1, 64, 64), mean=(0.0,), std=(1.0,))

    def made(ids, key=KEY, x=zero, **settings):
        return RecordReleaser(noise(**settings), spec, key=key, memo=None).release(x, ids).payload.flatten(1)

    base = RecordIds(["a", "b"], ["s", "s"])
    first = made(base)
    assert torch.equal(first, made(base))
    alone = RecordReleaser(noise(), spec, key=KEY, memo=None).release(zero[:1], RecordIds(["a"], ["s"]))
    assert torch.equal(first[:1], alone.payload.flatten(1))  # whatever comes along
    shifted = zero.clone()
    shifted[:, 0, 0, 0] = 1e-30
    others = {
        "another record": first[1],
        "another id": made(RecordIds(["x", "b"], ["s", "s"]))[0],
        "another subject": made(RecordIds(["a", "b"], ["t", "s"]))[0],
        "another key": made(base, key=NoiseKey(bytes(32)))[0],
        "other content": made(base, x=shifted)[0],
        "another C": made(base, clip_norm=3.0001)[0],
        "another bound": made(base, kind="clip")[0],
        "another ε": made(base, epsilon=2.001)[0],
    }
    for name, other in others.items():
        correlation = float(torch.corrcoef(torch.stack([first[0], other]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(4096), name
    assert torch.equal(made(None)[0], made(None)[1])  # without ids, equal content is one record


def test_its_bytes_are_pinned():
    """A restart, another machine or another PyTorch must give the same; a change needs another mechanism id."""
    found = releaser().release(torch.zeros(1, *SHAPE), RecordIds(["a"], ["ann"])).payload.flatten()
    assert (found[:6] / grid_of(noise().sigma)).tolist() == PINNED


PINNED = [343.0, -527.0, -469.0, -125.0, -261.0, -556.0]


def test_the_noise_is_gaussian():
    x = torch.zeros(16, 1, 64, 64)
    spec = InputSpec(shape=(1, 64, 64), mean=(0.0,), std=(1.0,))
    made = noise(epsilon=1.0)
    z = RecordReleaser(made, spec, key=KEY, memo=None).release(x, RecordIds([str(i) for i in range(16)]))
    values = (z.payload.flatten().double() / made.sigma).sort().values
    n = len(values)
    assert abs(float(values.mean())) < 4 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((values**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    cdf = 0.5 * torch.erfc(-values / math.sqrt(2))
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    kolmogorov = float(torch.maximum((steps - cdf).abs(), (steps - 1 / n - cdf).abs()).max())
    assert kolmogorov * math.sqrt(n) < 1.63 + math.sqrt(n) / 1024  # 1 %, and half a cell for the grid


def test_the_borders_between_cells_are_those_of_the_exact_law():
    """P(value < (k + ½)·g) is Φ of it: the integers on either side of a border fall on their own side."""
    sigma, m = 1.7, 0.6180339887498949
    grid = grid_of(sigma)
    for k in (-3000, -1200, -40, 119, 158, 600, 2500):
        with mpmath.workdps(50):
            z = ((mpmath.mpf(k) + mpmath.mpf("0.5")) * mpmath.mpf(grid) - mpmath.mpf(m)) / mpmath.mpf(sigma)
            tail = mpmath.ncdf(-abs(z)) * mpmath.mpf(2) ** 64  # of 2⁶³ magnitudes, those below are larger
            near = [int(tail * (1 + side * mpmath.mpf("2e-13"))) + side for side in (-1, 1)]
        words = np.array(near, dtype=np.uint64) + np.uint64(0 if z >= 0 else 2**63)
        u = torch.from_numpy(words)[:, None]
        value = gaussian_on_grid(torch.full((2, 1), m, dtype=torch.float64), sigma=sigma, uniforms=u)
        outside, inside = (value.flatten().double() / grid).round().tolist()
        assert (outside, inside) == ((k + 1, k) if z >= 0 else (k, k + 1))


def test_extreme_integers_and_signs():
    u = torch.from_numpy(np.array([[0, 2**63 - 1, 2**63, 2**64 - 1]], dtype=np.uint64))
    z = normal_of(u)[0]
    assert 9.1 < float(z[0]) < 9.2
    assert float(z[2]) == -float(z[0])
    assert abs(float(z[1])) < 1e-15
    assert abs(float(z[3])) < 1e-15
    found = gaussian_on_grid(torch.zeros(1, 4, dtype=torch.float64), sigma=1.0, uniforms=u)
    assert not bool(torch.signbit(found[0, 1:2]).any())
    assert not bool(torch.signbit(found[0, 3:]).any())  # the sign of a zero tells nothing


@pytest.mark.parametrize("sigma", [1e-30, 0.3, 1.0, 255.99, 256.0, 1e30])
def test_the_grid_depends_on_sigma_alone(sigma):
    grid = grid_of(sigma)
    assert math.frexp(grid)[0] == 0.5
    assert sigma / 512 < grid <= sigma / 256
    identity = identities_of(X[:1], None, release_hash="", mechanism=noise().mechanism)[0]
    u = KEY.uniforms(identity, 1000)[None]
    m = torch.linspace(-sigma, sigma, 1000, dtype=torch.float64)[None]
    cells = gaussian_on_grid(m, sigma=sigma, uniforms=u).double() / grid
    assert torch.equal(cells, cells.round())


def test_the_best_distinguisher_sees_no_more_than_mu():
    """Two records at opposite ends of the ball: their releases lie μ apart, in units of their spread."""
    made = noise(epsilon=4.0)
    direction = torch.ones(1, *SHAPE) / 4
    n = 4000
    names = RecordIds([str(i) for i in range(n)])
    found = []
    for side in (1.0, -1.0):
        x = (side * direction).expand(n, -1, -1, -1)
        found.append(
            (releaser(epsilon=4.0).release(x, names).payload.double() * direction).sum(dim=(1, 2, 3))
        )
    apart = (found[0].mean() - found[1].mean()) / torch.cat([found[0], found[1] + 6.0]).std()
    assert float(apart) == pytest.approx(made.mu, rel=0.06)


def dp(trained, **settings) -> Bundle:
    return DpInput.bundle_of(trained.whole, **{"epsilon": 8.0, **settings})


def half(bundle):
    return DpInput.cloud_half(bundle.cloud_part, device=torch.device("cpu"))


class _NotingLedger(InMemoryLedger):
    """Notes in a shared list when it was debited."""

    def __init__(self, notes, **options):
        super().__init__(**options)
        self._notes = notes

    def debit(self, debits):
        count = super().debit(debits)
        self._notes.append(f"debit {count}")
        return count


def test_the_ledger_is_debited_before_anything_is_sent(trained):
    bundle = dp(trained, plan=PLAN)
    notes: list[str] = []
    ledger = _NotingLedger(notes, budget="unlimited")
    with ScriptedCloud(honest(half(bundle))) as cloud:
        cloud.before = lambda: notes.append("send")
        method = DpInput.from_bundle(bundle, key=KEY, ledger=ledger)
        method.prepare(cloud)
        method.infer(trained.x[:2], RecordIds(["a", "b"], ["s", "t"]))
        method.infer(trained.x[:2], RecordIds(["a", "b"], ["s", "t"]))
        method.train_step(trained.x[:3], trained.test.y[:3], RecordIds(["a", "b", "c"], ["s", "t", "s"]))
        method.train_step(trained.x[:3], trained.test.y[:3], RecordIds(["a", "b", "c"], ["s", "t", "s"]))
    assert notes == ["debit 2", "send", "debit 0", "send", "debit 1", "send", "debit 0", "send"]
    made = noise_of(bundle.manifest)
    assert ledger.spent("s").mu == pytest.approx(made.mu * math.sqrt(2))
    assert ledger.spent("t").mu == pytest.approx(made.mu)
    sent = [tensors for sent in cloud.transcript for name, *_, tensors in sent.tensors if name == "x"]
    assert sent[0] == sent[1] == sent[2][: len(sent[0])]  # one release a record, whatever asks for it
    assert sent[2] == sent[3]


def test_over_budget_nothing_leaves(trained):
    bundle = dp(trained)
    ledger = InMemoryLedger(budget=noise_of(bundle.manifest).mu)
    with ScriptedCloud(honest(half(bundle))) as cloud:
        method = DpInput.from_bundle(bundle, key=KEY, ledger=ledger)
        method.prepare(cloud)
        first = method.infer(trained.x[:1], RecordIds(["a"], ["s"]))
        with pytest.raises(BudgetExceededError, match="subject has spent"):
            method.infer(trained.x[1:2], RecordIds(["b"], ["s"]))
        assert len(cloud.transcript) == 1
        again = method.infer(trained.x[:1], RecordIds(["a"], ["s"]))  # a stored release costs nothing
    assert torch.equal(first.logits, again.logits)
    assert ledger.spent("s").releases == 1


def test_without_a_cloud_nothing_is_debited(trained):
    method = DpInput.from_bundle(dp(trained), key=KEY)
    method.prepare(None)
    with pytest.raises(CloudError, match="no cloud"):
        method.infer(trained.x[:2])
    assert method.ledger.entries() == ()


def test_stored_values_are_what_a_repeated_query_sends():
    memo = InMemoryMemo()
    found = releaser(memo=memo).release(X, IDS)
    assert found.fresh == [True] * 4
    again = releaser(key=KEY, memo=memo).release(X, IDS)
    assert again.fresh == [False] * 4
    assert torch.equal(found.payload, again.payload)
    name = found.release_ids[0]
    other = InMemoryMemo()
    other.keep(name, bytes(64))
    assert float(releaser(memo=other).release(X, IDS).payload[0].abs().max()) == 0
    wrong = InMemoryMemo()
    wrong.keep(name, bytes(60))
    with pytest.raises(ConfigError, match="60 bytes"):
        releaser(memo=wrong).release(X, IDS)


def test_the_cloud_learns_from_noisy_records(trained):
    bundle = dp(trained, epsilon=2000.0, plan=StepPlan(steps=30, learning_rate=3e-3))
    x, y = trained.private.fit.x[:64], trained.private.fit.y[:64]
    ids = RecordIds([str(i) for i in range(64)])
    with Recorded(InProcessTransport(half(bundle))) as transport:
        method = DpInput.from_bundle(bundle, key=KEY)
        method.prepare(transport)
        losses = [method.train_step(x, y, ids).loss for _ in range(12)]
        after = method.trained()
    assert losses[-1] < losses[0]
    assert len(method.ledger.entries()) == 64  # twelve epochs over stored releases
    assert after.manifest.labels == "disclosed"
    assert noise_of(after.manifest) == noise_of(bundle.manifest)
    assert after.manifest.cloud_weights_hash != bundle.manifest.cloud_weights_hash


def test_a_bundle_without_a_plan_does_not_train(trained):
    bundle = dp(trained)
    assert bundle.manifest.labels == "none"
    with InProcessTransport(half(bundle)) as transport:
        method = DpInput.from_bundle(bundle, key=KEY)
        method.prepare(transport)
        with pytest.raises(TrainingUnsupportedError, match="'dp-input' does not let the cloud train"):
            method.train_step(trained.x[:2], trained.test.y[:2])
    assert method.ledger.entries() == ()


def test_what_it_claims(trained):
    bundle = dp(trained, epsilon=1.0)
    made = bundle.manifest.settings["noise"]
    assert made["bounding"]["clip_norm"] == 16.0  # √256
    assert made["mu"] == pytest.approx(0.268, abs=5e-4)
    assert made["sigma"] == pytest.approx(2 * 16 / 0.268, rel=2e-3)
    assert (made["epsilon"], made["delta"], made["unit"]) == (1.0, 1e-5, "per record, local, replace-one")
    claim = privacy_claim(bundle.manifest)
    assert "0.2681-GDP and (1, 1e-05)-DP" in claim.claim
    assert claim.ceiling_bits == pytest.approx(0.013, abs=5e-4)
    assert privacy_claim(bundle.manifest, delta=1e-9).epsilon > 1.0
    assert any("labels: not sent" in line for line in claim.lines())
    assert DpInput.claim(bundle.manifest) == claim.claim


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epsilon": None}, "no default noise"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"clip_norm": 1e31}, "clip_norm"),
        ({"bounding": "none"}, "kind"),
        ({"sigma": 1.0}, "no setting sigma"),
        ({"noise": "none"}, "no setting noise"),
    ],
)
def test_settings_that_make_no_guarantee_are_refused(trained, settings, text):
    with pytest.raises(ConfigError, match=text) as caught:
        dp(trained, **settings)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_promises_more_than_its_noise_is_refused(trained):
    bundle = dp(trained)

    def tampered(**changes):
        settings = {"noise": {**bundle.manifest.settings["noise"], **changes}}
        return Bundle(bundle.manifest.resealed(settings=settings), bundle.facts, {}, bundle.cloud)

    made = noise_of(bundle.manifest)
    for bad in (
        {"epsilon": 4.0},
        {"delta": 1e-9},
        {"sigma": made.sigma / 2, "mu": made.mu * 2},
        {"sigma": made.sigma / 2},
        {"mu": made.mu / 2},
        {"unit": "per person"},
    ):
        with pytest.raises(ConfigError, match="manifest: noise"):
            DpInput.from_bundle(tampered(**bad), key=KEY)
    bare = Bundle(bundle.manifest.resealed(settings={}), bundle.facts, {}, bundle.cloud)
    with pytest.raises(BundleError, match="declares no noise"):
        DpInput.from_bundle(bare, key=KEY)


def test_it_needs_a_key(trained):
    with pytest.raises(ConfigError, match="noise key"):
        DpInput.from_bundle(dp(trained))


def test_the_mechanism_refuses_what_it_cannot_noise():
    m, u = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.uint64)
    for bad in ((m.float(), u), (m, u[:, :1]), (m, u.to(torch.int64)), (m / 0, u)):
        with pytest.raises(InputError):
            gaussian_on_grid(bad[0], sigma=1.0, uniforms=bad[1])
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyParameterError):
            gaussian_on_grid(m, sigma=sigma, uniforms=u)
    with pytest.raises(InputError, match="record ids"):
        releaser().release(X, RecordIds(["a"]))
