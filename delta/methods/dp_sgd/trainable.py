"""Whether DP-SGD keeps its promise on a model: each record has a gradient of its own, and no buffer sees any."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from delta.errors import ConfigError, ModelError
from delta.importing import one_line
from delta.methods.dp_sgd.accounting import needs_opacus
from delta.methods.dp_sgd.buffers import buffers_of, changed_buffer
from delta.methods.dp_sgd.plan import DpSgdPlan
from delta.methods.dp_sgd.randomness import SecretNumbers
from delta.methods.dp_sgd.stepper import DpStepper, under_opacus
from delta.models.modes import evaluating

__all__ = ["check_trainable"]

_REFUSED = "method 'dp-sgd' cannot train this model"
_OUTLIER = 1e6
"""How much larger the other record is: whatever lets it through lets much of it through."""
_TOLERANCE = 1e-2
"""Of a gradient's norm: batches of other sizes take other kernels, and an activation at zero may tip."""
_DROPOUTS = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "dropout_",
}
_PLAN = DpSgdPlan(records=3, batch=3, steps=1, noise_multiplier=1.0, delta=0.1)


def check_trainable(module: nn.Module, record: Tensor) -> None:
    """Refuse a model of which opacus gets no gradient a record, in which records see each other, or which keeps some.

    What a model does only now and then a probe cannot see; so `DpStepper` puts buffers back in any case.

    Args:
        module: not changed.
        record: `[1, *shape]`, of zeros will do.

    Raises:
        ModelError: naming what does not work.
        MethodError: opacus is not installed.
    """
    probe = copy.deepcopy(module).train()
    errors = needs_opacus().validators.ModuleValidator.validate(probe, strict=False)
    if errors:
        raise ModelError(f"{_REFUSED}: {one_line(errors[0])}")
    noise = torch.randn(3, *record.shape[1:], generator=torch.Generator().manual_seed(0)).to(record)
    x = noise * torch.tensor([1.0, _OUTLIER, 1.0]).to(record).view(3, *[1] * (record.dim() - 1))
    before = buffers_of(probe)
    with evaluating(probe):
        together, alone = probe(x), [probe(x[i : i + 1]) for i in (0, 2)]
    for row, one in zip((0, 2), alone, strict=True):
        if not torch.allclose(together[row : row + 1], one, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ModelError(f"{_REFUSED}: a record's answer depends on the others of its batch")
    try:
        with torch.random.fork_rng():
            _check_training(probe.train(), x, before)
            DpStepper(copy.deepcopy(module), _PLAN, SecretNumbers(0)).step(
                noise, torch.zeros(3, dtype=torch.int64)
            )
    except ModelError:
        raise
    except ConfigError:
        return  # a loss that is not finite on noise says nothing about the records
    except Exception as error:
        raise ModelError(
            f"{_REFUSED}: opacus gets no gradient a record ({one_line(error)}); "
            "operations in place, such as x += y, are a usual cause"
        ) from None


def _check_training(probe: nn.Module, x: Tensor, before: Mapping[tuple[str, str], Tensor]) -> None:
    """In train mode: buffers stay, and the first and the last record have the gradients that they have alone.

    Raises:
        ModelError: they do not.
    """
    model, _ = under_opacus(probe, torch.optim.SGD(probe.requires_grad_(True).parameters(), lr=1.0), _PLAN)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
        _WithoutDropout(),
    ):
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        torch.manual_seed(0)
        alone = [_rows(model, x[:1])[0], _rows(model, x[2:])[0]]
        together = _rows(model, x)
        # Once more, with other numbers and after the batch: a layer may keep a record outside its buffers.
        torch.manual_seed(1)
        again = _rows(model, x[:1])[0]
    changed = changed_buffer(dict(before), buffers_of(probe))
    if changed is not None:
        path, name = changed
        raise ModelError(
            f"{_REFUSED}: layer {path or 'of the model itself'!r} changes its buffer {name!r} as records pass, and "
            "no noise covers that; use a layer without running statistics"
        )
    if not _close(alone[0], again):
        raise ModelError(
            f"{_REFUSED}: in training it draws random numbers of its own, or remembers earlier records, so that a "
            "record cannot be held against itself; use nn.Dropout, and keep no state"
        )
    if not (_close(alone[0], together[0]) and _close(alone[1], together[2])):
        raise ModelError(f"{_REFUSED}: a record's gradient depends on the others of its batch in training")


def _rows(model: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Logits and gradients of each record of a batch, `[n, values]`.

    Raises:
        ValueError: opacus has none of a parameter, or not one a record.
    """
    logits = model(x.clone()).float()
    loss = nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    loss.backward()  # type: ignore[no-untyped-call]
    parts = [logits.detach()]
    part: Any
    for part in model.parameters():  # type: ignore[attr-defined]
        found, part.grad, part.grad_sample = part.grad_sample, None, None
        if found is None:
            raise ValueError("a parameter has no gradient")
        if len(found) != len(x):
            raise ValueError(f"{len(found)} gradients of {len(x)} records")
        parts.append(found.detach().flatten(1))
    return torch.cat(parts, dim=1)


def _close(a: Tensor, b: Tensor) -> bool:
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
    return float((a - b).norm()) <= _TOLERANCE * float(a.norm()) + 1e-6


class _WithoutDropout(TorchFunctionMode):
    """Dropout, called as a layer or a function, lets all through; a draw of 0 or 1 gives its expectation.

    Else a record would differ from itself, whatever the others are. Nothing of it mixes records.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS:
            return args[0] if args else named["input"]
        if func is Tensor.bernoulli_:  # stochastic depth divides by the same probability
            chance = args[1] if len(args) > 1 else named.get("p", 0.5)
            return args[0].fill_(chance) if isinstance(chance, float | int) else args[0].copy_(chance)
        return func(*args, **named)
