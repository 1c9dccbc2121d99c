"""Faults that an audit must catch, seeded into the audited copy alone: no code that ships has a switch for one.

Each is a `Releaser` that differs from the real one in a single step, in the ways in which libraries have
gone wrong: sensitivity from values that nobody bounded, a scale from the data, noise drawn anew or twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from delta.errors import ConfigError
from delta.release.bounding import clip, normalise
from delta.release.ids import ReleaseIdentity
from delta.release.mechanism import one_bit
from delta.release.releaser import Releaser

__all__ = ["FAULTS", "MATES", "RAW_NORM", "AlteredReleaser", "Fault", "fault_of", "norm_fault"]


class AlteredReleaser(Releaser):
    """A releaser whose bound, σ or uniforms a subclass changes."""

    def bounded(self, message: Tensor) -> Tensor:
        """Messages `[n, k, h_m, w_m]` → `[n, d]` float64 of norm at most C, as the real one does."""
        bound = normalise if self.config.bounding.kind == "normalise" else clip
        return bound(message, self.config.bounding.clip_norm).flatten(1)

    def deviation(self) -> float:
        """σ of the noise."""
        if self.config.sigma is None:
            raise ConfigError("a fault of the noise needs noise; audit a configuration that has some")
        return self.config.sigma

    def uniforms(self, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
        """The uniform integers `[n, count]`."""
        return self._key.batch_uniforms(identities, count)

    def _bits(self, message: Tensor, identities: Sequence[ReleaseIdentity]) -> Tensor:
        bounded = self.bounded(message)
        drawn = self.uniforms(identities, bounded.shape[1])
        return one_bit(bounded, sigma=self.deviation(), uniforms=drawn).view(message.shape)


class _NoClip(AlteredReleaser):
    def bounded(self, message: Tensor) -> Tensor:
        return message.flatten(1).to(torch.float64)


class _BatchScale(AlteredReleaser):
    def bounded(self, message: Tensor) -> Tensor:
        flat = message.flatten(1).to(torch.float64)
        mean = flat.norm(dim=1).mean().clamp_min(1e-300)
        scaled: Tensor = flat * (self.config.bounding.clip_norm / mean)
        return scaled


class _ScaledSigma(AlteredReleaser):
    def deviation(self) -> float:
        return 0.5 * super().deviation()


class _FixedSeed(AlteredReleaser):
    def uniforms(self, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
        same = [replace(identity, record="", digest=b"", subject="") for identity in identities]
        return super().uniforms(same, count)


def _fresh_retry() -> type[AlteredReleaser]:
    calls = itertools.count()  # of one audit, across what stands for a restart

    class FreshRetry(AlteredReleaser):
        def uniforms(self, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
            call = next(calls)
            fresh = [replace(identity, record=f"{identity.record}#{call}") for identity in identities]
            return super().uniforms(fresh, count)

    return FreshRetry


def _scaled(factor: float) -> type[AlteredReleaser]:
    class Scaled(AlteredReleaser):
        def bounded(self, message: Tensor) -> Tensor:
            return factor * super().bounded(message)

    return Scaled


@dataclass(frozen=True)
class Fault:
    """A seeded fault.

    Attributes:
        name: as `--fault` takes it.
        what: it does, in one line.
        make: the altered releaser, made anew for each audit.
        memo: whether stored bytes are sent again, as they should be.
        norm: the factor by which it makes the message of the transparent network's pair too large for σ.
        fresh: whether a second ask draws again.
    """

    name: str
    what: str
    make: Callable[[], Callable[..., Releaser]]
    memo: bool = True
    norm: float = 1.0
    fresh: bool = False


MATES = 0.25
"""The share of a batch that the pair's mates take: their messages are zero, which a batch's mean norm shows."""
RAW_NORM = 3.0
"""‖m‖ of the transparent network's pair before it is bounded to C = 1."""

FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("no-clip", "the message's norm is not bounded", lambda: _NoClip, norm=RAW_NORM),
            Fault(
                "doubled-norm",
                "the norm is bounded by 2C, and σ is for C",
                lambda: _scaled(2.0),
                norm=2.0,
            ),
            Fault("fresh-retry", "a second ask draws fresh noise", _fresh_retry, memo=False, fresh=True),
            Fault("scaled-sigma", "σ is multiplied by 0.5", lambda: _ScaledSigma, norm=2.0),
            Fault("fixed-seed", "all records share one noise stream", lambda: _FixedSeed),
            Fault(
                "batch-scale",
                "one scale for a batch, from its mean norm",
                lambda: _BatchScale,
                norm=1 / (1 - MATES),
            ),
        )
    }
)


def fault_of(name: str) -> Fault:
    """A fault by name.

    Raises:
        ConfigError: unknown; the text names them all.
    """
    if name not in FAULTS:
        raise ConfigError(f"no fault {name!r}; the faults are {', '.join(FAULTS)}")
    return FAULTS[name]


def norm_fault(factor: float) -> Fault:
    """The norm bounded by `factor`·C, and σ for C: for the power at a size of fault of one's choice."""
    return Fault(
        f"norm-x{factor:g}",
        f"the norm is bounded by {factor:g} C, and σ is for C",
        lambda: _scaled(factor),
        norm=factor,
    )
