"""A module as machine code: AOTInductor with the weights frozen in."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import ConfigError, InputError

__all__ = ["compiled", "need_compiler"]

_MOST = 1 << 16
"""Records a call, at most: sizes are symbols to the compiler, and bounded ones are quicker."""


def need_compiler(runtime: str, device: torch.device) -> None:
    """Refuse where nothing could be compiled.

    Raises:
        ConfigError: no C++ compiler, or another device than the CPU.
    """
    if device.type != "cpu":
        raise ConfigError(f"runtime {runtime!r} compiles for the CPU, not for {device.type}; use 'folded'")
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"runtime {runtime!r} needs a C++ compiler, and {compiler} is not there; install g++, or use 'folded'"
        )


def compiled(module: nn.Module, probe: Tensor) -> Callable[[Tensor], Tensor]:
    """Compile a module for inference, once for lone records and once for batches of any size.

    The weights are part of the machine code, which is private as they are: it passes through no cache, and
    through a folder that only this user may read and that is gone on return.

    Args:
        module: in eval mode, without gradients, on the CPU.
        probe: `[n, …]` records, n ≥ 2.
    """
    batches = torch.export.Dim("n", min=2, max=_MOST)
    lone, many = _library(module, probe[:1], None), _library(module, probe, ({0: batches},))
    shape = probe.shape[1:]

    def run(x: Tensor) -> Tensor:
        # Machine code looks at neither shape nor strides.
        if x.shape[1:] != shape or not len(x):
            raise InputError(f"compiled for records [n, {', '.join(map(str, shape))}], got {list(x.shape)}")
        x = x.to(torch.float32).contiguous()
        return lone(x) if len(x) == 1 else many(x)

    return run


def _library(module: nn.Module, example: Tensor, sizes: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    from torch._inductor import aot_compile  # slow to import
    from torch._inductor.utils import fresh_cache

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), fresh_cache(dir=folder):
        warnings.simplefilter("ignore")
        with torch.inference_mode(False), torch.no_grad():
            x = example.clone()
            program = torch.export.export(module, (x,), dynamic_shapes=sizes).module()
            path = str(aot_compile(program, (x,), options={"freezing": True}))
        # Once loaded, a library needs its file no more.
        runner = torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)

    def run(records: Tensor) -> Tensor:
        found: Tensor = runner.run([records])[0]
        return found

    return run
