"""Runtimes: logits within the stated error, weights as trained, released bits untouched."""

import pytest
import torch
from torch import nn

from delta.errors import ConfigError, InputError, ModelError
from delta.methods.main_only import MainOnly
from delta.methods.private_only import PrivateOnly
from delta.methods.stepping import StepPlan
from delta.models.main_model import build_main
from delta.models.runtime import RUNTIMES, STATED_ERROR, Runner, optimised
from tests.method_cases import case_of

QUICK = ("eager", "folded", "bfloat16")


def lively(module):
    """A module whose batch normalisations have statistics worth folding, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias)
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return module.eval().requires_grad_(False)


def main_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(build_main(layout="light", in_channels=4, size=(8, 8), classes=5, max_macs=60_000))


def records(count, seed=1):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def holds(runner, module, how):
    """Any batch size, any memory layout: within the stated error."""
    for count in (1, 2, 7):
        x = records(count)
        for laid in (
            x,
            x.to(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            found = runner(laid)
            assert found.shape == (count, 5)
            assert found.dtype == torch.float32
            assert not found.requires_grad
            assert error(found, module(laid)) <= STATED_ERROR[how]


@pytest.mark.parametrize("how", QUICK)
def test_logits_are_within_the_stated_error(how):
    module = main_model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    runner = Runner(module, how, example=records(1))
    assert runner.error <= STATED_ERROR[how]
    assert (runner.error == 0) == (how == "eager")
    holds(runner, module, how)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compiled", "compiled-bfloat16"])
def test_machine_code_is_within_the_stated_error_and_leaves_nothing_behind(how, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module = main_model()
    runner = Runner(module, how, example=records(1))
    assert not list(tmp_path.rglob("*.so"))
    assert not list(tmp_path.rglob("*.pt2"))
    assert 0 < runner.error <= STATED_ERROR[how]
    holds(runner, module, how)
    with pytest.raises(InputError, match="compiled for records"):
        runner(records(3)[:, :2])


def test_without_a_compiler_the_reason_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match="needs a C\\+\\+ compiler, and no-such-compiler is not there"
    ) as caught:
        Runner(main_model(), "compiled", example=records(1))
    assert "\n" not in str(caught.value)


def test_a_runtime_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="runtime must be one of eager, folded"):
        Runner(main_model(), "fast", example=records(1))
    assert set(STATED_ERROR) == set(RUNTIMES)


def test_only_the_cpu_is_compiled_for():
    with pytest.raises(ConfigError, match="not for meta"):
        Runner(main_model(), "compiled", example=records(1).to("meta"))


class Branching(nn.Module):
    """Control flow that depends on values: no trace of it can be made."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        y = self.stem(x).mean((2, 3))
        return self.fc(-y if float(y.sum()) < 0 else y)


def test_what_cannot_be_traced_is_folded_module_by_module():
    module = lively(Branching())
    made = optimised(module, records(2), how="folded")
    assert error(made.module(records(5)), module(records(5))) <= STATED_ERROR["folded"]
    kinds = [type(part) for part in made.module.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.Identity in kinds


class Shared(nn.Module):
    """One convolution before two normalisations: folding both into it would be wrong."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.BatchNorm2d(5)

    def forward(self, x):
        return (self.one(self.conv(x)) - self.two(self.conv(x))).mean((2, 3))


def test_logits_that_move_too_far_are_refused():
    with pytest.raises(ModelError, match=r"move by .* more than the stated 1e-04; use runtime 'eager'"):
        optimised(lively(Shared()), records(2), how="folded")


class NeedsFloat32(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x).flatten(1)[:, :5]


def test_a_module_that_does_not_run_that_way_is_refused():
    with pytest.raises(ModelError, match="NeedsFloat32 does not run as 'bfloat16'"):
        optimised(NeedsFloat32().eval(), records(2), how="bfloat16")


def test_training_mode_is_refused():
    with pytest.raises(ModelError, match="eval"):
        optimised(main_model().train(), records(1), how="folded")


@pytest.mark.parametrize("method", [PrivateOnly, MainOnly])
@pytest.mark.parametrize("how", ["folded", "bfloat16"])
def test_methods_infer_under_a_runtime_and_train_as_they_are(trained, method, how):
    plan = StepPlan(steps=10, learning_rate=1e-2)
    bundle = method.bundle_of(trained.whole)
    plain, fast = (method.from_bundle(bundle, plan=plan, runtime=name) for name in ("eager", how))
    x, y = trained.x[:16], trained.test.y[:16]
    first = fast.infer(x).logits
    assert error(first, plain.infer(x).logits) <= STATED_ERROR[how]
    for _ in range(2):
        losses = [one.train_step(x, y).loss for one in (plain, fast)]
        assert losses[0] == losses[1]  # training is the eager module's
        found, expected = fast.infer(x).logits, plain.infer(x).logits
        assert error(found, expected) <= STATED_ERROR[how]
        assert error(found, expected) < error(first, expected) / 2  # and inference is of the new weights
    assert all(torch.equal(fast.trained().private[n], t) for n, t in plain.trained().private.items())


@pytest.mark.parametrize("name", ["delta-none", "delta-noise", "delta-principal", "delta-svd"])
def test_no_runtime_turns_a_released_bit(trained, name):
    case = case_of(name, trained)
    x, ids = trained.x[:20], case.ids(20)
    found = {}
    for how in QUICK:
        method = type(case.make()).from_bundle(case.bundle, **case.options(), runtime=how)
        method.prepare(None)
        found[how] = method.infer(x, ids)
    for how in QUICK:
        assert torch.equal(found[how].extras["payload"], found["eager"].extras["payload"])
        assert error(found[how].logits, found["eager"].logits) <= STATED_ERROR[how]
