"""Faster ways to run a small private model, each within a stated error of the plain one.

They are for modules whose exact bits nobody depends on: a main model, or a whole model that runs alone. Never
for what stands before a release: another rounding turns released bits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

from delta.errors import ConfigError, ModelError
from delta.models.compiled import compiled, need_compiler
from delta.models.modes import record_and_noise

__all__ = ["RUNTIMES", "STATED_ERROR", "Optimised", "Runner", "Runtime", "check_runtime", "optimised"]

Runtime = Literal["eager", "folded", "bfloat16", "compiled", "compiled-bfloat16"]
"""`eager`: as the module is. `folded`: batch normalisation folded into the convolutions, channels last.
`bfloat16`: folded, and weights and activations in bfloat16. `compiled`, `compiled-bfloat16`: either through
AOTInductor, with the weights frozen in; CPU only, and building takes some ten seconds."""

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

STATED_ERROR: dict[Runtime, float] = {
    "eager": 0.0,
    "folded": 1e-4,
    "bfloat16": 5e-2,
    "compiled": 1e-4,
    "compiled-bfloat16": 5e-2,
}
"""The most by which logits may differ from eager ones, over the largest eager one, on the records of the check."""

_PROBE = 16
_BFLOAT16: tuple[Runtime, ...] = ("bfloat16", "compiled-bfloat16")
_COMPILED: tuple[Runtime, ...] = ("compiled", "compiled-bfloat16")


@dataclass(frozen=True)
class Optimised:
    """A module under a runtime, `[n, …] → [n, classes]` float32 as before, for inference alone.

    Attributes:
        module: what to call; a copy that later changes of the original's weights do not reach.
        runtime: how it runs.
        error: measured on the example: max |z − z_eager| / max |z_eager|.
    """

    module: Callable[[Tensor], Tensor]
    runtime: Runtime
    error: float


def optimised(module: nn.Module, example: Tensor, *, how: Runtime) -> Optimised:
    """Build a module for a runtime, and measure what that does to its logits.

    Args:
        module: in eval mode; not changed.
        example: `[n, …]` records, on the module's device; the build is checked on them and on seeded noise.
        how: the runtime.

    Raises:
        ConfigError: no such runtime, or it needs a C++ compiler or a CPU that there is not.
        ModelError: the module does not run that way, or its logits move by more than `STATED_ERROR`.
    """
    check_runtime(how, example.device)
    if module.training:
        raise ModelError("only a module in eval mode can be optimised; call eval() on it")
    if how == "eager":
        return Optimised(module, how, 0.0)
    probe = record_and_noise(example, records=_PROBE)
    try:
        with torch.no_grad():
            built = _built(module, probe, how)
            expected = module(probe).float()
            # A lone record has a kernel of its own.
            found = torch.cat([built(probe), built(probe[:1])]).float()
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} does not run as {how!r} ({type(error).__name__}); use runtime 'eager'"
        ) from None
    worst = float((found - torch.cat([expected, expected[:1]])).abs().max() / expected.abs().max())
    if not worst <= STATED_ERROR[how]:
        raise ModelError(
            f"as {how!r} the logits of {type(module).__name__} move by {worst:.1e} of the largest, more than "
            f"the stated {STATED_ERROR[how]:.0e}; use runtime 'eager'"
        )
    return Optimised(built, how, worst)


def check_runtime(how: str, device: torch.device | str) -> Runtime:
    """Refuse a runtime that there is not, or that cannot work here.

    Raises:
        ConfigError: naming what is missing.
    """
    if how not in RUNTIMES:
        raise ConfigError(f"runtime must be one of {', '.join(RUNTIMES)}, got {how!r}")
    if how in _COMPILED:
        need_compiler(how, torch.device(device))
    return how


class Runner:
    """A module that may yet be trained, run under a runtime: built again where its weights have changed.

    Args:
        module: in eval mode, on its device.
        how: the runtime.
        example: one record `[1, …]` on that device.

    Raises:
        ConfigError: as `optimised`; `ModelError` likewise.
    """

    def __init__(self, module: nn.Module, how: str, *, example: Tensor) -> None:
        self.runtime = check_runtime(how, example.device)
        self._module, self._example = module, example
        self._built: Optimised | None = optimised(module, example, how=self.runtime)

    @property
    def error(self) -> float:
        """Of the build that runs now: see `Optimised`."""
        return self._now().error

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, …] → [n, classes]` float32, without gradients."""
        with torch.inference_mode():
            return self._now().module(x).float()

    def renew(self) -> None:
        """The weights have changed: the next call builds again."""
        self._built = None

    def _now(self) -> Optimised:
        if self._built is None:
            self._built = optimised(self._module, self._example, how=self.runtime)
        return self._built


class _Adapted(nn.Module):
    """Another type and memory layout inside; float32 outside."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype, *, channels_last: bool) -> None:
        super().__init__()
        self.inner = inner.to(dtype)
        if channels_last:
            self.inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack this form
        self.dtype, self.channels_last = dtype, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """`[n, …] → [n, classes]`."""
        x = x.to(self.dtype)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.inner(x)
        return logits.float()


def _built(module: nn.Module, probe: Tensor, how: Runtime) -> Callable[[Tensor], Tensor]:
    dtype = torch.bfloat16 if how in _BFLOAT16 else torch.float32
    last = how not in _COMPILED  # the compiler chooses layouts itself
    adapted = _Adapted(_folded(module), dtype, channels_last=last).eval().requires_grad_(False)
    if how in _COMPILED:
        return compiled(adapted, probe)
    return cast("Callable[[Tensor], Tensor]", adapted)


def _folded(module: nn.Module) -> nn.Module:
    """A copy with every batch normalisation that follows a convolution folded into it."""
    plain = copy.deepcopy(module).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole: nn.Module = fuse(plain)
        return whole
    except Exception:
        # Control flow that cannot be traced: fold where modules follow each other by definition.
        for part in plain.modules():
            if type(part) is nn.Sequential:
                _fold_neighbours(part)
        return plain


def _fold_neighbours(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for first, second in pairwise(names):
        convolution, normalisation = sequence._modules[first], sequence._modules[second]
        if type(convolution) is nn.Conv2d and type(normalisation) is nn.BatchNorm2d:
            sequence._modules[first] = fuse_conv_bn_eval(convolution, normalisation)
            sequence._modules[second] = nn.Identity()
