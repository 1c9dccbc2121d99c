"""3LegRace as a method: it equals the plain model, sends residuals alone, and survives its cloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture
from delta.bundle.store import CloudPart
from delta.errors import (
    BundleError,
    CloudAnswerError,
    CloudError,
    CloudUnavailableError,
    ConfigError,
    ModelError,
)
from delta.methods.private_only import PrivateOnly
from delta.methods.schema import run_operation
from delta.methods.stepping import StepPlan
from delta.methods.three_leg_race import ThreeLegRace
from delta.methods.three_leg_race.lowrank import split_records
from delta.methods.whole import WholeModel
from delta.release.config import InputSpec
from delta.transport.base import Answer
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest

CPU = torch.device("cpu")
PLAN = StepPlan(steps=20, learning_rate=1e-3)


class Zoo(nn.Module):
    """Every kind of convolution that there is: strided, grouped, 1×1, biased, with and without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.bn = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.group = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.deep = nn.Conv2d(16, 24, 4, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.down(x) + self.short(x))
        x = torch.relu(self.group(x))
        x = torch.relu(self.deep(x))
        return self.head(x.mean((2, 3)))


def _zoo(calibration: Tensor | None = None) -> WholeModel:
    torch.manual_seed(0)
    return WholeModel.of(
        Zoo(),
        input=InputSpec(shape=(3, 12, 12), mean=(0.0,) * 3, std=(1.0,) * 3),
        architecture=Architecture(target="tests.unit.test_three_leg_race:Zoo"),
        calibration=calibration,
    )


def _half(bundle):
    return ThreeLegRace.cloud_half(bundle.cloud_part, device=CPU)


def _x(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", [{"energy": 0.0, "max_rank": 64}, {"energy": 0.3}, {"max_rank": 1}])
def test_without_noise_it_is_the_plain_model(rule):
    whole, x = _zoo(), _x()
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=0.0, **rule)
    with InProcessTransport(_half(bundle)) as transport, torch.no_grad():
        method = ThreeLegRace.from_bundle(bundle)
        method.prepare(transport)
        prediction = method.infer(x)
        torch.testing.assert_close(prediction.logits, whole.module(x), rtol=1e-4, atol=1e-4)
    assert prediction.used_cloud
    assert prediction.cost.round_trips == 5


@pytest.mark.parametrize("rule", [{"energy": 0.0, "max_rank": 64}, {"energy": 0.3}])
def test_without_noise_it_trains_as_the_plain_model_does(rule):
    whole = _zoo()
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=0.0, **rule)
    plain = PrivateOnly.from_bundle(PrivateOnly.bundle_of(whole), plan=PLAN)
    with InProcessTransport(_half(bundle)) as transport:
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
        method.prepare(transport)
        for step in range(3):
            x, y = _x(seed=step), torch.arange(6) % 5
            found, expected = method.train_step(x, y), plain.train_step(x, y)
            assert found.loss == pytest.approx(expected.loss, abs=1e-4)
            assert found.cost.round_trips == 10
        after, reference = method.trained(), plain.trained()
        assert after.private.keys() == reference.private.keys()
        for name, tensor in reference.private.items():
            torch.testing.assert_close(after.private[name], tensor, rtol=1e-3, atol=2e-4)
        assert any(not torch.equal(after.private[n], bundle.private[n]) for n in ("stem.weight", "stem.bias"))
        # The cloud's own weights are old now: the new ones go along, until the trained bundle is served.
        now = method.infer(_x())
    assert after.manifest.labels == "disclosed"
    assert bundle.manifest.labels == "none"
    with InProcessTransport(_half(after)) as transport:
        served = ThreeLegRace.from_bundle(after)
        served.prepare(transport)
        torch.testing.assert_close(served.infer(_x()).logits, now.logits, rtol=1e-4, atol=1e-4)


def test_its_gradients_are_the_plain_ones():
    whole, x, y = _zoo(), _x(), torch.arange(6) % 5
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=0.0)
    module = whole.module.train()
    expected = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(module.parameters()))
    with InProcessTransport(_half(bundle)) as transport:
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
        method.prepare(transport)
        method.train_step(x, y)
        found = [parameter.grad for parameter in method._network.module.parameters()]
    norm = torch.stack([g.norm() for g in expected]).norm()
    for one, other in zip(found, expected, strict=True):
        # The step has clipped them to norm 5, all in proportion.
        torch.testing.assert_close(one, other * min(1.0, 5 / float(norm)), rtol=1e-3, atol=1e-5)


def test_the_noise_reaches_the_logits_and_is_the_same_for_the_same_record(trained):
    bundle = ThreeLegRace.bundle_of(trained.whole, noise_ratio=0.5)
    plain = ThreeLegRace.bundle_of(trained.whole, noise_ratio=0.0)
    answers = []
    with InProcessTransport(_half(bundle)) as transport:
        for whole, seed in ((bundle, 0), (bundle, 0), (bundle, 1), (bundle, None), (plain, 0)):
            method = ThreeLegRace.from_bundle(whole, seed=seed)
            method.prepare(transport)
            answers.append(method.infer(trained.x[:4]).logits)
            again = method.infer(trained.x[:4]).logits
            torch.testing.assert_close(again, answers[-1])
    torch.testing.assert_close(answers[1], answers[0])
    for other in answers[2:]:
        assert float((other - answers[0]).abs().max()) > 1e-2


def test_it_keeps_the_accuracy_of_the_model(trained):
    bundle = ThreeLegRace.bundle_of(trained.whole)
    with InProcessTransport(_half(bundle)) as transport, torch.no_grad():
        method = ThreeLegRace.from_bundle(bundle, seed=0)
        method.prepare(transport, deadline_s=60)
        found = method.infer(trained.x).logits.argmax(1)
    plain = trained.whole.module(trained.x).argmax(1)
    accuracies = [float((guess == trained.test.y).float().mean()) for guess in (found, plain)]
    assert accuracies[0] >= accuracies[1] - 0.03


def _sent(transcript) -> dict[str, Tensor]:
    found = {}
    for request in transcript:
        for name, _, shape, data in request.tensors:
            found[f"{request.op} {name}"] = torch.frombuffer(bytearray(data), dtype=torch.float32).view(shape)
    return found


def test_the_residual_is_what_leaves_and_layers_that_read_one_tensor_share_it():
    whole, x = _zoo(), _x()
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=0.0, max_rank=2)
    noisy = ThreeLegRace.bundle_of(whole, noise_ratio=0.1, max_rank=2)
    seen = []
    for one in (bundle, noisy):
        with Recorded(InProcessTransport(_half(one))) as transport:
            method = ThreeLegRace.from_bundle(one, seed=0)
            method.prepare(transport)
            prediction = method.infer(x)
        seen.append(_sent(transport.transcript))
    _, residual = split_records(x, energy=0.1, max_rank=2)
    torch.testing.assert_close(seen[0]["layer-0 x"], residual)
    assert set(seen[0]) == {f"layer-{i} x" for i in range(5)}
    added = seen[1]["layer-0 x"] - seen[0]["layer-0 x"]
    torch.testing.assert_close(
        added.std() / residual.square().mean().sqrt(), torch.tensor(0.1), rtol=0.1, atol=0
    )
    for one in seen:
        assert torch.equal(one["layer-1 x"], one["layer-2 x"])  # `down` and `short`
    assert max(max(ranks) for ranks in prediction.extras["ranks"].values()) == 2
    assert set(prediction.extras["ranks"]) == {"stem", "down", "short", "group", "deep"}


class Twice(nn.Module):
    """Its convolutions read equal values in two tensors, and one that differs from them by a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two, self.other = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.one(h.relu()) + self.two(h.relu()) + self.other(2 * h.relu())
        return y.mean((2, 3))


@pytest.mark.parametrize("training", [False, True])
def test_equal_values_in_two_tensors_leave_under_one_noise(training):
    torch.manual_seed(0)
    whole = WholeModel.of(
        Twice(),
        input=InputSpec(shape=(3, 12, 12), mean=(0.0,) * 3, std=(1.0,) * 3),
        architecture=Architecture(target="tests.unit.test_three_leg_race:Twice"),
    )
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=1.0, max_rank=2)
    with Recorded(InProcessTransport(_half(bundle))) as transport:
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
        method.prepare(transport)
        if training:
            method.train_step(_x(), torch.zeros(6, dtype=torch.int64))
        else:
            assert method.infer(_x()).used_cloud
    sent, op = _sent(transport.transcript), "train-layer" if training else "layer"
    one, two, other = (sent[f"{op}-{index} x"] for index in (1, 2, 3))
    assert torch.equal(one, two)
    # Other values, another noise: of half of them the noise of `one` is not what is left.
    assert float((other / 2 - one).square().mean()) > 0.5 * float(one.square().mean())


def test_training_sends_residual_weights_and_gradient_and_keeps_nothing_in_the_cloud():
    bundle = ThreeLegRace.bundle_of(_zoo(), max_rank=2)
    half = _half(bundle)
    with Recorded(InProcessTransport(half)) as transport:
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN, seed=0)
        method.prepare(transport)
        for _ in range(2):
            method.train_step(_x(), torch.zeros(6, dtype=torch.int64))
    sent = [
        {name: data for name, _, _, data in request.tensors} | {"op": request.op}
        for request in transport.transcript
    ]
    assert [one["op"] for one in sent[:5]] == [f"train-layer-{i}" for i in range(5)]
    assert {one["op"] for one in sent[5:10]} == {f"grad-{i}" for i in range(5)}
    by_op = {one["op"]: one for one in sent[:10]}
    for i in range(5):
        assert set(by_op[f"train-layer-{i}"]) == {"op", "x", "w"}
        assert set(by_op[f"grad-{i}"]) == {"op", "x", "w", "dy"}
        assert by_op[f"train-layer-{i}"]["x"] == by_op[f"grad-{i}"]["x"]
    later = {one["op"]: one for one in sent[10:]}
    assert later["train-layer-0"]["x"] != by_op["train-layer-0"]["x"]  # another step, other noise
    assert later["train-layer-0"]["w"] != by_op["train-layer-0"]["w"]
    assert torch.equal(half._weights[0], bundle.cloud["layer-0.weight"])


def _failing(half, op: str, error: Exception | None, change=lambda t: t):
    """Honest, but for one operation."""
    fair = honest(half)

    def script(number: int, name: str, tensors: Mapping[str, Tensor]):
        if name != op:
            return fair(number, name, tensors)
        if error is not None:
            return error
        outputs = run_operation(half, name, dict(tensors))
        return Answer({key: change(t.clone()) for key, t in outputs.items()}, 0.5, 100, 40)

    return script


FAULTS = {
    "unavailable": (CloudUnavailableError("nobody answers"), lambda t: t),
    "some error": (CloudError("it failed"), lambda t: t),
    "NaN": (None, lambda t: t.fill_(torch.nan)),
    "larger than it can be": (None, lambda t: t + 1e4),
    "wrong shape": (None, lambda t: t[..., :-1]),
}


@pytest.mark.parametrize("op", ["train-layer-3", "grad-4", "grad-0"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_step_surfaces_as_itself_and_leaves_this_side_untouched(op, fault):
    bundle = ThreeLegRace.bundle_of(_zoo())
    half, (error, change) = _half(bundle), FAULTS[fault]
    method = ThreeLegRace.from_bundle(bundle, plan=PLAN, seed=0)
    x, y = _x(), torch.arange(6) % 5
    with ScriptedCloud(_failing(half, op, error, change)) as cloud:
        method.prepare(cloud)
        with pytest.raises(type(error) if error else CloudAnswerError) as caught:
            method.train_step(x, y)
    if error is not None:
        assert caught.value is error
    assert "\n" not in str(caught.value)
    after = method.trained()
    assert after.manifest.labels == "none"
    for name, tensor in bundle.private.items():
        assert torch.equal(after.private[name], tensor), name
    fresh = ThreeLegRace.from_bundle(bundle, plan=PLAN, seed=0)
    losses = []
    with InProcessTransport(half) as transport:
        for one in (method, fresh):
            one.prepare(transport)
            losses.append(one.train_step(x, y).loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("which", ["dx", "dw"])
def test_each_gradient_is_held_to_what_it_can_be(which):
    bundle = ThreeLegRace.bundle_of(_zoo())
    half = _half(bundle)
    fair = honest(half)

    def script(number: int, op: str, tensors: Mapping[str, Tensor]):
        answer = fair(number, op, tensors)
        if op == "grad-2":
            tensors = {name: t.clone() for name, t in answer.tensors.items()}
            tensors[which].view(-1)[-1] = 1e4
            return replace(answer, tensors=tensors)
        return answer

    method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
    with ScriptedCloud(script) as cloud:
        method.prepare(cloud)
        with pytest.raises(CloudAnswerError, match="'grad-2' is larger than"):
            method.train_step(_x(), torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_layer_leaves_no_answer_of_the_clouds_in_the_prediction(fault):
    whole, x = _zoo(), _x()
    bundle = ThreeLegRace.bundle_of(whole)
    half, (error, change) = _half(bundle), FAULTS[fault]
    method = ThreeLegRace.from_bundle(bundle)
    with ScriptedCloud(_failing(half, "layer-3", error, change)) as cloud, torch.no_grad():
        method.prepare(cloud)
        prediction = method.infer(x)
        torch.testing.assert_close(prediction.logits, whole.module(x), rtol=1e-5, atol=1e-6)
    assert not prediction.used_cloud
    assert prediction.reason == ("unreachable" if error else "bad-answer")
    assert prediction.detail
    assert prediction.cost.private_macs > whole.macs  # the work thrown away counts
    assert prediction.extras == {}
    method.prepare(None)
    assert method.infer(x).cost.private_macs == whole.macs


def test_honest_answers_are_never_called_too_large():
    """The bound is met by a record of one sign, under weights of one sign."""
    whole = _zoo()
    for parameter in whole.module.parameters():
        parameter.data.abs_()
    bundle = ThreeLegRace.bundle_of(whole, max_rank=1)
    with InProcessTransport(_half(bundle)) as transport:
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
        method.prepare(transport)
        for x in (torch.ones(2, 3, 12, 12), torch.zeros(2, 3, 12, 12), 1e20 * _x(2).abs()):
            prediction = method.infer(x)
            assert prediction.used_cloud, prediction.detail
        method.train_step(torch.ones(2, 3, 12, 12), torch.zeros(2, dtype=torch.int64))


def test_large_batches_go_in_several_requests(monkeypatch):
    monkeypatch.setattr("delta.methods.three_leg_race.legs._REQUEST_BYTES", 20_000)
    whole, x, y = _zoo(), _x(), torch.arange(6) % 5
    bundle = ThreeLegRace.bundle_of(whole, noise_ratio=0.0)
    plain = PrivateOnly.from_bundle(PrivateOnly.bundle_of(whole), plan=PLAN)
    with Recorded(InProcessTransport(_half(bundle))) as transport, torch.no_grad():
        method = ThreeLegRace.from_bundle(bundle, plan=PLAN)
        method.prepare(transport)
        prediction = method.infer(x)
        assert prediction.cost.round_trips == 5  # a layer's requests go together
        assert len(transport.transcript) > 5
        torch.testing.assert_close(prediction.logits, whole.module(x), rtol=1e-4, atol=1e-4)
        method.train_step(x, y)
        plain.train_step(x, y)
    for name, tensor in plain.trained().private.items():
        torch.testing.assert_close(method.trained().private[name], tensor, rtol=1e-3, atol=2e-4)


def test_calibration_says_what_the_private_side_computes():
    smooth = torch.ones(4, 3, 12, 12) * torch.arange(1, 5).view(4, 1, 1, 1)
    with_records = ThreeLegRace.bundle_of(_zoo(smooth))
    without = ThreeLegRace.bundle_of(_zoo())
    assert with_records.facts.figures["rank_stem"] == 1
    assert without.facts.figures["rank_stem"] == 3
    assert with_records.facts.private_macs < without.facts.private_macs
    assert with_records.facts.cloud_macs == without.facts.cloud_macs
    assert "rank" not in str(with_records.manifest.settings).replace("max_rank", "")  # they tell of records
    with InProcessTransport(_half(with_records)) as transport:
        method = ThreeLegRace.from_bundle(with_records, seed=0)
        method.prepare(transport)
        cost = method.infer(smooth).cost
    assert abs(cost.private_macs - with_records.facts.private_macs) < 0.2 * with_records.facts.private_macs


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"energy": 1.0}, "energy"),
        ({"energy": -0.1}, "energy"),
        ({"max_rank": 0}, "max_rank"),
        ({"noise_ratio": -1.0}, "noise_ratio"),
        ({"rank": 3}, "no setting rank; it takes energy, max_rank, noise_ratio"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        ThreeLegRace.bundle_of(_zoo(), **settings)


def test_what_cannot_be_run_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    whole = WholeModel.of(
        flat,
        input=InputSpec(shape=(3, 2, 2), mean=(0.0,) * 3, std=(1.0,) * 3),
        architecture=Architecture(target="tests.unit.test_three_leg_race:Zoo"),
    )
    with pytest.raises(ModelError, match=r"no nn\.Conv2d"):
        ThreeLegRace.bundle_of(whole)
    bundle = ThreeLegRace.bundle_of(_zoo())
    with pytest.raises(ConfigError, match="float32"):
        ThreeLegRace.from_bundle(bundle, plan=StepPlan(precision="bfloat16"))


@pytest.mark.parametrize("spoil", ["none", "no list", "a field", "fewer", "weights", "groups"])
def test_a_manifest_that_lies_about_its_layers_is_refused(spoil):
    bundle = ThreeLegRace.bundle_of(_zoo())
    layers = bundle.manifest.settings["layers"]
    changed = {
        "none": None,
        "no list": "layers",
        "a field": [{**layers[0], "kernel": [0, 3]}, *layers[1:]],
        "fewer": layers[:-1],
        "weights": [{**layers[0], "kernel": [5, 3]}, *layers[1:]],
        "groups": [*layers[:-1], {**layers[-1], "input": [16, 2, 2]}],
    }[spoil]
    manifest = bundle.manifest.resealed(settings={**bundle.manifest.settings, "layers": changed})
    with pytest.raises(BundleError, match="layer"):
        ThreeLegRace.cloud_half(CloudPart(manifest, bundle.cloud), device=CPU)
    with pytest.raises(BundleError, match="layers"):
        ThreeLegRace.from_bundle(replace(bundle, manifest=manifest))
