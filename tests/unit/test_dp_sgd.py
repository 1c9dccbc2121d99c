"""`dp-sgd`: clipped and noised as a slow oracle says, accounted as another accountant does, drawn in secret."""

import math
import subprocess
import sys
import warnings

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from torch import nn
from torch.ao.quantization import MinMaxObserver

from delta.bundle.store import Bundle
from delta.errors import (
    BundleError,
    CloudError,
    ConfigError,
    InputError,
    MethodError,
    ModelError,
    PrivacyParameterError,
)
from delta.methods.cloud_only import CloudOnly
from delta.methods.dp_sgd import DpSgd, DpSgdPlan, stepper
from delta.methods.dp_sgd.accounting import epsilon_of_steps, noise_multiplier_for
from delta.methods.dp_sgd.norms import groups_for, with_group_norm
from delta.methods.dp_sgd.randomness import SecretNumbers
from delta.methods.dp_sgd.stepper import DpStepper
from delta.methods.dp_sgd.trainable import check_trainable
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel
from delta.release.config import InputSpec
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, sent_of
from tests.unit.models_zoo import Plain

SHAPE = (3, 8, 8)
RECORDS = 40
X = torch.randn(RECORDS, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.arange(RECORDS) % 5
TARGET = "tests.unit.models_zoo:Plain"


def whole(seed=0):
    spec = InputSpec(shape=SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3)
    return WholeModel.build(TARGET, input=spec, seed=seed)


def bundle(**settings) -> Bundle:
    known = {"noise_multiplier": 1.0, "records": RECORDS, "batch": 10, "steps": 20, "delta": 1e-3}
    return DpSgd.bundle_of(whole(), **{**known, **settings})


def plan(**changes):
    known = {"records": RECORDS, "batch": 10, "steps": 20, "noise_multiplier": 1e-6, "delta": 1e-3}
    return DpSgdPlan(**{**known, "learning_rate": 1.0, "momentum": 0.0, **changes})


def grouped():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return with_group_norm(Plain()).eval()


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def pld(*, noise_multiplier, sample_rate, steps, delta):
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    return accountant.compose(event, steps).get_epsilon(delta)


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "steps", "delta"),
    [(1.0, 0.01, 1000, 1e-5), (4.0, 0.5, 50, 1e-5), (2.0, 0.05, 40, 1e-3)],
)
def test_epsilon_is_what_another_accountant_says(noise_multiplier, sample_rate, steps, delta):
    case = {"noise_multiplier": noise_multiplier, "sample_rate": sample_rate, "steps": steps, "delta": delta}
    found, expected = epsilon_of_steps(**case), pld(**case)
    assert 0.999 * expected <= found <= 1.02 * expected + 0.001  # opacus adds its own error


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(3.0, 0.02, 100), (0.09, 0.01, 30)])
def test_the_noise_for_an_epsilon_keeps_it_and_spends_it(epsilon, rate, steps):
    found = noise_multiplier_for(epsilon=epsilon, delta=1e-5, sample_rate=rate, steps=steps)
    case = {"noise_multiplier": found, "sample_rate": rate, "steps": steps, "delta": 1e-5}
    assert 0.99 * epsilon <= epsilon_of_steps(**case) <= epsilon
    assert pld(**case) <= epsilon


def test_no_step_spends_nothing_and_noise_that_cannot_be_found_is_refused():
    assert epsilon_of_steps(noise_multiplier=1.0, sample_rate=0.1, steps=0, delta=1e-5) == 0
    for epsilon, text in ((0.0, "above 0"), (math.inf, "above 0"), (1e-4, "no noise"), (1e9, "next to no")):
        with pytest.raises(PrivacyParameterError, match=text):
            noise_multiplier_for(epsilon=epsilon, delta=1e-5, sample_rate=0.1, steps=10)


def test_where_tight_accounting_gives_up_there_is_still_a_bound():
    case = {"noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 5, "delta": 1e-14}
    assert pld(**case) <= epsilon_of_steps(**case) < 2 * pld(**case)
    assert epsilon_of_steps(noise_multiplier=0.02, sample_rate=0.5, steps=5, delta=1e-5) > 1000


def clipped_gradient(module, x, y, norm):
    """One record's gradient, clipped: plain autograd, no hooks."""
    module.train()
    loss = nn.functional.cross_entropy(module(x[None]), y[None])
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    return flat * min(1.0, norm / float(flat.norm()))


@pytest.mark.parametrize("together", [64, 3])
def test_a_step_is_the_sum_of_the_clipped_gradients(together, monkeypatch):
    monkeypatch.setattr(stepper, "_TOGETHER", together)
    x = X[:8].clone()
    x[0] *= 1e4
    for norm in (0.05, 100.0):  # all clipped, and none
        module, oracle = grouped(), grouped()
        before = weights_of(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = DpStepper(module, plan(max_grad_norm=norm, noise_multiplier=1e-9), SecretNumbers(1)).step(
                x, Y[:8]
            )
        expected = sum(
            clipped_gradient(oracle, one, label, norm) for one, label in zip(x, Y[:8], strict=True)
        )
        torch.testing.assert_close((before - weights_of(module)) * 10, expected, rtol=2e-3, atol=2e-5)
        own = nn.functional.cross_entropy(oracle.eval()(x), Y[:8], reduction="sum")
        assert loss == pytest.approx(own.item(), rel=1e-4)
        assert not module.training


def test_no_record_moves_the_weights_further_than_the_clipping_norm():
    steps = []
    for count in (7, 8):
        module = grouped()
        before = weights_of(module)
        x = X[:8].clone()
        x[7] *= 1e6
        DpStepper(module, plan(max_grad_norm=0.3, noise_multiplier=1e-9), SecretNumbers(1)).step(
            x[:count], Y[:count]
        )
        steps.append((before - weights_of(module)) * 10)
    assert float((steps[1] - steps[0]).norm()) <= 0.3 * (1 + 1e-4)


def test_the_noise_is_gaussian_of_the_stated_size():
    """A step on an empty batch is noise alone."""
    found = []
    for seed in range(12):
        module = grouped()
        before = weights_of(module).double()
        made = DpStepper(module, plan(noise_multiplier=3.0, max_grad_norm=0.5), SecretNumbers(seed))
        assert made.step(X[:0], Y[:0]) == 0
        found.append((before - weights_of(module).double()) * 10 / 1.5)
    z = torch.cat(found).sort().values
    n = len(z)
    assert n > 10_000
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    cdf = 0.5 * torch.erfc(-z / math.sqrt(2))
    kolmogorov = float((torch.arange(1, n + 1, dtype=torch.float64) / n - cdf).abs().max())
    assert kolmogorov * math.sqrt(n) < 1.63 + math.sqrt(n) / 1024


def test_the_numbers_are_secret_unless_a_seed_is_given():
    assert not torch.equal(SecretNumbers().integers(4), SecretNumbers().integers(4))
    assert torch.equal(SecretNumbers(1).integers(4), SecretNumbers(1).integers(4))
    assert not torch.equal(SecretNumbers(1).integers(4), SecretNumbers(2).integers(4))
    assert not torch.equal(SecretNumbers(1).integers(4), SecretNumbers(1, start="x").integers(4))
    whole_stream, parts = SecretNumbers(1).integers(9), SecretNumbers(1)
    assert torch.equal(whole_stream, torch.cat([parts.integers(5), parts.integers(4)]))


def test_poisson_samples_have_the_stated_rate():
    numbers = SecretNumbers(0)
    drawn = [numbers.poisson(200, rate=0.3) for _ in range(400)]
    counts = torch.tensor([float(len(one)) for one in drawn])
    assert abs(float(counts.mean()) - 60) < 4 * math.sqrt(42 / 400)
    assert float(counts.var()) == pytest.approx(42, rel=0.3)  # a fixed size would have none
    each = torch.zeros(200).index_add_(0, torch.cat(drawn), torch.ones(int(counts.sum())))
    assert float((each / 400 - 0.3).abs().max()) < 4.5 * math.sqrt(0.21 / 400)
    assert len(numbers.poisson(50, rate=1.0)) == 50


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (7, 1), (8, 2), (12, 3), (16, 4), (48, 12), (64, 16), (512, 32)]
)
def test_groups_divide_the_channels(channels, groups):
    assert groups_for(channels) == groups
    assert channels % groups == 0


def test_batch_norms_become_group_norms_of_the_same_names():
    model = Plain()
    names = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    changed = with_group_norm(model)
    assert [n for n, part in changed.named_modules() if isinstance(part, nn.GroupNorm)] == names
    assert not any(isinstance(part, nn.BatchNorm2d) for part in changed.modules())
    assert isinstance(with_group_norm(nn.BatchNorm2d(8)), nn.GroupNorm)
    assert with_group_norm(nn.Sequential(nn.BatchNorm1d(8, affine=False)))[0].weight is None
    with pytest.raises(ModelError, match="'0' does not know its channels"):
        with_group_norm(nn.Sequential(nn.LazyBatchNorm2d()))


class _Mixing(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(dim=0))


class _MixingInTraining(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(dim=0) if self.training else x)


class _Kept(nn.Module):
    """In training, a buffer without parameters takes the records' exact mean; `above` is a threshold for it."""

    def __init__(self, above=-math.inf):
        super().__init__()
        self.above = above
        self.register_buffer("mean", torch.zeros(SHAPE))

    def forward(self, x):
        if self.training and len(x) and float(x.detach().max()) > self.above:
            self.mean.copy_(x.detach().mean(dim=0))
        return x


class _Counted(Plain):
    def __init__(self, above=-math.inf):
        super().__init__()
        self.seen = _Kept(above)

    def forward(self, x):
        return super().forward(self.seen(x))


class _Remembering(Plain):
    last = 0.0

    def forward(self, x):
        x, self.last = x + self.last, float(x.detach().mean()) if self.training else 0.0
        return super().forward(x)


class _Positions(nn.Module):
    """Opacus sees a row a position here, and would clip each of them: 64 times the sensitivity."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 5)

    def forward(self, x):
        return self.last(x.flatten(2).mT.reshape(-1, 3)).view(len(x), -1, 5).mean(dim=1)


class _Dropping(Plain):
    """Random in training, but each record for itself: as a layer, as a function, and as a draw of its own."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout2d(0.3)

    def forward(self, x):
        x = nn.functional.dropout(self.drop(x), 0.5, training=self.training)
        if self.training:
            x = x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.8).div_(0.8)
        return super().forward(x)


class _Unused(Plain):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (_Mixing, "depends on the others"),
        (_MixingInTraining, "gradient depends on the others"),
        (_Counted, "layer 'seen' changes its buffer 'mean'"),
        (_Remembering, "remembers earlier records"),
        (_Positions, "64 gradients of 1 records"),
        (_Unused, "gets no gradient a record"),
        (lambda: nn.Sequential(MinMaxObserver(), Plain()), "layer '0' changes its buffer 'm"),
        (lambda: nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), Plain()), "'running_mean'"),
    ],
)
def test_models_without_a_gradient_a_record_are_refused(model, text):
    with pytest.raises(ModelError, match=text) as caught:
        check_trainable(with_group_norm(model()).eval(), torch.zeros(1, *SHAPE))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="BatchNorm"):
        check_trainable(Plain().eval(), torch.zeros(1, *SHAPE))


def test_dropout_and_the_randomness_of_the_caller_are_left_alone():
    module = with_group_norm(_Dropping()).eval()
    before = torch.random.get_rng_state()
    check_trainable(module, torch.zeros(1, *SHAPE))
    assert torch.equal(torch.random.get_rng_state(), before)


def rarely_counted():
    """Its buffer takes records that no probe looks like."""
    return _Counted(above=1e8)


@pytest.mark.parametrize("together", [64, 1])
def test_what_a_step_writes_into_buffers_is_taken_back(together, monkeypatch):
    monkeypatch.setattr(stepper, "_TOGETHER", together)
    module = with_group_norm(rarely_counted()).eval()
    kept, seen = module.seen.mean, []
    module.second.register_forward_hook(lambda *_: seen.append(module.seen.mean.clone()))
    made = DpStepper(module, plan(), SecretNumbers(1))
    made.step(X[:2] * 1e9, Y[:2])
    assert all(bool(mean.any()) for mean in seen)  # it was written
    with pytest.raises(ConfigError, match="not finite"):
        made.step(X[:2] * 1e30, Y[:2])
    assert module.seen.mean is kept
    assert not bool(kept.any())


def test_no_buffer_is_published():
    target = f"{__name__}:rarely_counted"
    spec = InputSpec(shape=SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3)
    known = {"noise_multiplier": 1.0, "records": RECORDS, "batch": 10, "steps": 20, "delta": 1e-3}
    made = DpSgd.bundle_of(WholeModel.build(target, input=spec), **known)
    method = DpSgd.from_bundle(made)
    method.train_step(X[:4], Y[:4])
    method._module.seen.mean.fill_(7.0)  # as if a step had left it there
    after = method.trained()
    assert after.cloud.keys() == made.cloud.keys()
    assert not bool(after.cloud["seen.mean"].any())
    assert not torch.equal(after.cloud["first.0.weight"], made.cloud["first.0.weight"])


def test_activations_in_place_are_no_obstacle():
    model = grouped()
    for part in model.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True
    check_trainable(model, torch.zeros(1, *SHAPE))


def test_it_trains_alone_and_accounts_for_every_step():
    made = bundle(noise_multiplier=0.4, learning_rate=0.5)
    with Recorded(
        InProcessTransport(
            DpSgd.cloud_half(made.cloud_part, device=torch.device("cpu"), allowed=frozenset({TARGET}))
        )
    ) as cloud:
        method = DpSgd.from_bundle(made)
        method.prepare(cloud)
        assert method.privacy_spent() == (0.0, 1e-3)
        losses = method.fit(X, Y, steps=15)
        assert cloud.transcript == []
    assert len(losses) == 15
    case = {"noise_multiplier": 0.4, "sample_rate": 0.25, "steps": 15}
    epsilon, delta = method.privacy_spent()
    assert delta == 1e-3
    assert epsilon == pytest.approx(pld(**case, delta=1e-3), rel=0.02)
    assert method.privacy_spent(delta=1e-5)[0] > epsilon
    after = method.trained()
    settings = after.manifest.settings
    assert settings["epsilon"] == epsilon
    assert {"delta": 1e-3, "noise_multiplier": 0.4, "steps": 15, "norm": "group"}.items() <= settings.items()
    assert settings["adjacency"] == "add or remove one record"
    assert (settings["sampling"], settings["noise"], after.manifest.labels) == ("poisson", "secret", "none")
    assert DpSgd.claim(made.manifest).startswith("none: no step")
    claim = DpSgd.claim(after.manifest)
    assert claim.startswith(
        f"training data ({epsilon:.4g}, 0.001)-DP, central, add or remove one record; queries"
    )
    again = DpSgd.from_bundle(after)  # goes on where the first one ended
    with pytest.raises(ConfigError, match="5 of 20 steps left, and 6 are asked for"):
        again.fit(X, Y, steps=6)
    again.fit(X, Y)
    assert again.trained().manifest.settings["steps"] == 20
    assert again.privacy_spent()[0] > epsilon
    with pytest.raises(ConfigError, match="0 of 20 steps left"):
        again.train_step(X[:4], Y[:4])


def test_it_learns():
    made = bundle(noise_multiplier=0.01, steps=40, batch=20, learning_rate=0.5)
    means = torch.linspace(-1, 1, 5)[Y].view(-1, 1, 1, 1)
    losses = DpSgd.from_bundle(made, seed=0).fit(X + means, Y)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_batches_of_the_callers_are_stated_and_a_seed_is_told():
    made = bundle()
    method = DpSgd.from_bundle(made, seed=7)
    step = method.train_step(X[:10], Y[:10])
    assert (step.cost.bytes_up, step.cost.round_trips, step.cost.cloud_macs) == (0, 0, 0)
    assert step.cost.private_macs == made.facts.cloud_macs > 0
    assert step.cost.peak_private_mib > 0
    after = method.trained()
    assert (after.manifest.settings["sampling"], after.manifest.settings["noise"]) == ("stated", "seeded")
    claim = DpSgd.claim(after.manifest)
    assert claim.startswith("none: a seed made the noise")
    assert "one training a seed" in claim
    twin = DpSgd.from_bundle(made, seed=7)
    twin.train_step(X[:10], Y[:10])
    assert twin.trained().manifest.cloud_hash == after.manifest.cloud_hash
    other = DpSgd.from_bundle(made)
    other.train_step(X[:10], Y[:10])
    assert other.trained().manifest.cloud_hash != after.manifest.cloud_hash
    assert "; if the batches were Poisson samples" in DpSgd.claim(other.trained().manifest)


def test_a_seeded_training_that_goes_on_meets_no_noise_again():
    made = bundle(momentum=0.0, noise_multiplier=50.0)
    first = DpSgd.from_bundle(made, seed=7)
    first.train_step(X[:1], Y[:1])
    middle = first.trained()
    second = DpSgd.from_bundle(middle, seed=7)
    second.train_step(X[:1], Y[:1])

    def vector(one):
        return torch.cat([t.flatten() for _, t in sorted(one.cloud.items())])

    moves = torch.stack([vector(middle) - vector(made), vector(second.trained()) - vector(middle)])
    assert abs(float(torch.corrcoef(moves)[0, 1])) < 0.2


def test_where_training_starts():
    fitted = whole(seed=9)
    known = {"noise_multiplier": 1.0, "records": RECORDS, "batch": 10, "steps": 20, "delta": 1e-3}
    fresh = DpSgd.bundle_of(fitted, **known)
    given = DpSgd.bundle_of(fitted, weights="given", **known)
    own = fitted.module.state_dict()["first.0.weight"]
    assert torch.equal(given.cloud["first.0.weight"], own)
    assert not torch.equal(fresh.cloud["first.0.weight"], own)
    assert (
        DpSgd.bundle_of(whole(), **known).manifest.cloud_hash == fresh.manifest.cloud_hash
    )  # the seed alone
    assert any(isinstance(part, nn.BatchNorm2d) for part in fitted.module.modules())  # not changed
    method = DpSgd.from_bundle(given)
    method.train_step(X[:4], Y[:4])
    assert "began with not covered" in DpSgd.claim(method.trained().manifest)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"noise_multiplier": None}, "no default noise"),
        ({"epsilon": 1.0}, "no default noise"),
        ({"records": None}, "both records and steps"),
        ({"steps": None}, "both records and steps"),
        ({"steps": 0}, "steps"),
        ({"batch": 41}, "batch 41 is above"),
        ({"delta": 0.1}, "delta must be well below"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"momentum": 1.0}, "momentum"),
        ({"epochs": 3}, "no setting epochs"),
    ],
)
def test_settings_that_make_no_guarantee_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text) as caught:
        bundle(**settings)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_before_a_step():
    made = bundle()
    method = DpSgd.from_bundle(made)
    with pytest.raises(ConfigError, match="40 training records, and there are 39"):
        method.fit(X[:-1], Y[:-1])
    with pytest.raises(InputError, match="label"):
        method.train_step(X[:2], torch.tensor([0, 5]))
    with pytest.raises(InputError, match="preprocess"):
        method.infer(X * 1e13)
    with pytest.raises(CloudError, match="no cloud"):
        method.infer(X)
    stranger = Bundle(made.manifest, made.facts, {}, made.cloud)
    with pytest.raises(BundleError, match="not allowed"):
        DpSgd.from_bundle(stranger).train_step(X[:2], Y[:2])
    DpSgd.from_bundle(stranger, allow=[TARGET]).train_step(X[:2], Y[:2])
    bare = Bundle(made.manifest.resealed(settings={}), made.facts, {}, made.cloud)
    with pytest.raises(BundleError, match="declares no training"):
        DpSgd.from_bundle(bare)
    settings = {**made.manifest.settings, "sampling": "shuffled"}
    with pytest.raises(ConfigError, match="manifest: settings"):
        DpSgd.from_bundle(Bundle(made.manifest.resealed(settings=settings), made.facts, {}, made.cloud))


def test_a_step_that_fails_changes_nothing_and_counts_nothing():
    method = DpSgd.from_bundle(bundle())
    with pytest.raises(ConfigError, match="not finite"):
        method.train_step(X[:2] * 1e30, Y[:2])
    assert method.privacy_spent()[0] == 0
    assert method.trained().cloud.keys() == bundle().cloud.keys()
    assert all(torch.equal(t, bundle().cloud[name]) for name, t in method.trained().cloud.items())
    method.train_step(X[:2], Y[:2])


def forged(**changes):
    """A bundle's manifest, trained by 15 steps as it says, but for the changes."""
    made = bundle()
    plan = DpSgdPlan.parse(made.manifest.settings["dp_sgd"], what="plan")
    spent = {**made.manifest.settings, "steps": 15, "epsilon": plan.epsilon_after(15)}
    return made.manifest.resealed(settings={**spent, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"delta": 1e-9}, "states delta 1e-09, and its plan 0.001"),
        ({"noise_multiplier": 9.0}, "states noise_multiplier 9, and its plan 1"),
        ({"steps": 21}, "states 21 steps of a plan of 20"),
    ],
)
def test_a_bundle_that_contradicts_its_plan_is_refused(changes, text):
    made, manifest = bundle(), forged(**changes)
    with pytest.raises(BundleError, match=text):
        DpSgd.from_bundle(Bundle(manifest, made.facts, {}, made.cloud))
    with pytest.raises(BundleError, match=text):
        DpSgd.claim(manifest)


def test_a_claim_is_computed_again(monkeypatch):
    honest, low, high = forged(), forged(epsilon=0.01), forged(epsilon=1e3)
    epsilon = honest.settings["epsilon"]
    assert DpSgd.claim(honest).startswith(f"training data ({epsilon:.4g}, 0.001)-DP")
    assert DpSgd.claim(high).startswith("training data (1000, 0.001)-DP")
    with pytest.raises(BundleError, match=rf"states epsilon 0.01, and its 15 steps spend {epsilon:.4g}"):
        DpSgd.claim(low)
    monkeypatch.setitem(sys.modules, "opacus", None)
    epsilon_of_steps.cache_clear()
    assert "epsilon as stated" in DpSgd.claim(low)


def test_the_logits_of_the_cloud_are_clipped_to_the_bound():
    made = bundle()
    tight = Bundle(made.manifest.resealed(logit_bound=0.05), made.facts, {}, made.cloud, made_here=True)
    half = DpSgd.cloud_half(made.cloud_part, device=torch.device("cpu"), allowed=frozenset({TARGET}))
    with InProcessTransport(half) as cloud:
        wide, clipped = DpSgd.from_bundle(made), DpSgd.from_bundle(tight)
        wide.prepare(cloud)
        clipped.prepare(cloud)
        logits = wide.infer(X).logits
        assert float(logits.abs().max()) > 0.05
        assert torch.equal(clipped.infer(X).logits, logits.clamp(-0.05, 0.05))


def test_one_function_makes_all_that_a_step_in_the_cloud_sends(monkeypatch):
    made = CloudOnly.bundle_of(whole(), plan=StepPlan(steps=3))
    half = CloudOnly.cloud_half(made.cloud_part, device=torch.device("cpu"), allowed=frozenset({TARGET}))
    x, y = X[:2] + 1, torch.tensor([4, 3])
    monkeypatch.setattr(CloudOnly, "_request", lambda self, x, ids, y=None: {"x": x - 1, "y": y - 1})
    with Recorded(InProcessTransport(half)) as cloud:
        method = CloudOnly.from_bundle(made)
        method.prepare(cloud)
        method.train_step(x, y)
        assert cloud.transcript[0] == sent_of("train", {"x": x - 1, "y": y - 1}, 10.0)
    monkeypatch.undo()
    assert torch.equal(method._request(x, None, y)["y"], y)


def test_without_opacus_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MethodError, match=r"needs the package 'opacus'; install delta-split\[baselines\]"):
        bundle()


def test_opacus_is_imported_by_training_alone():
    code = "import sys; from delta.methods.registry import method_names; method_names(); print('opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
