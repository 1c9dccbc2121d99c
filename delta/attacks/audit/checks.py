"""What an audit looks at beside the likelihood ratio: independence of the noise, the law of the bits, retries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from delta.attacks.audit.binomial import fisher_above, two_sided
from delta.attacks.audit.mechanism import Captured

__all__ = ["Check", "Tally", "bit_probabilities", "log_ratio"]

_EXACT = 64  # coordinates whose p-value is computed exactly: those that lie farthest out


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        passed: whether nothing was found.
        what: was counted, in one line, with the numbers.
        p_value: the probability of this or worse where the mechanism is as claimed; none where it must not be.
    """

    passed: bool
    what: str
    p_value: float | None

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return {"passed": self.passed, "what": self.what, "p_value": self.p_value}


@dataclass
class Tally:
    """Counts over all captured packets.

    Args:
        probabilities: P(bit = 1) under the claim for the pair's images, `[2, d]` float64.

    Attributes:
        ones: bits that were 1, `[2, d]`.
        records: of each image.
        within: pairs of distinct records of one image under one key, and how many had equal packets.
        across: pairs of records of one image under two keys, likewise; no record is in two pairs.
        waiting: of each image, packets of a key that wait for another's.
        asked_twice: records.
        differing: those whose second packet held other bits.
    """

    probabilities: Tensor
    ones: Tensor = field(init=False)
    records: list[int] = field(default_factory=lambda: [0, 0])
    within: list[int] = field(default_factory=lambda: [0, 0])
    across: list[int] = field(default_factory=lambda: [0, 0])
    waiting: dict[int, Tensor] = field(default_factory=dict)
    asked_twice: int = 0
    differing: int = 0

    def __post_init__(self) -> None:
        self.ones = torch.zeros(self.probabilities.shape, dtype=torch.int64)

    def add(self, captured: Captured) -> None:
        """Count one chunk."""
        self.asked_twice += len(captured.first)
        self.differing += int((captured.bits != captured.again).any(1).sum())
        for side, mask in enumerate((captured.first, ~captured.first)):
            bits, packed = captured.bits[mask], captured.packed[mask]
            self.ones[side] += bits.sum(0, dtype=torch.int64)
            self.records[side] += len(bits)
            half = len(packed) // 4 * 2
            _compare(packed[0:half:2], packed[1:half:2], self.within)
            rest, other = packed[half:], self.waiting.pop(side, None)
            if other is None:
                self.waiting[side] = rest
            else:
                n = min(len(rest), len(other))
                _compare(rest[:n], other[:n], self.across)

    def independence(self, *, alpha: float) -> Check:
        """Whether distinct records have equal packets more often under one key than under two.

        They have not where noise is independent, whatever the law of the bits; Fisher's exact test.
        """
        (pairs, equal), (others, other_equal) = self.within, self.across
        value = fisher_above(equal, pairs, other_equal, others)
        text = (
            f"{equal:,} of {pairs:,} pairs of distinct records have equal packets under one noise key, "
            f"{other_equal:,} of {others:,} under two"
        )
        return Check(value > alpha, text, value)

    def law(self, *, alpha: float) -> Check:
        """Whether each bit is 1 as often as Φ(m/σ) says: exact binomial tests, Bonferroni over all of them."""
        n = torch.tensor(self.records)[:, None].double()
        p = self.probabilities.clamp(1e-300, 1 - 1e-16)
        z = ((self.ones - n * p) / torch.sqrt(n * p * (1 - p)).clamp_min(1e-12)).abs().flatten()
        farthest = z.topk(min(_EXACT, z.numel())).indices
        ones, rates = self.ones.flatten(), self.probabilities.flatten()
        d = self.probabilities.shape[1]
        values = [
            two_sided(int(ones[place]), self.records[place // d], float(rates[place]))
            for place in farthest.tolist()
        ]
        value = min(1.0, z.numel() * min(values, default=1.0))
        text = (
            f"the bit farthest from Φ(m/σ), of {z.numel():,} compared, is {float(z.max()):.1f} deviations off"
        )
        return Check(value > alpha, text, value)

    def retry(self) -> Check:
        """Whether a second ask sent the same bytes: chance has no part in it."""
        text = f"{self.differing:,} of {self.asked_twice:,} records asked for twice sent other bits the second time"
        return Check(self.differing == 0, text, None)


def _compare(some: Tensor, others: Tensor, counts: list[int]) -> None:
    counts[0] += len(some)
    counts[1] += int((some == others).all(1).sum())


def bit_probabilities(messages: Tensor, sigma: float) -> Tensor:
    """Φ(m/σ) of bounded messages, float64."""
    return 0.5 * torch.erfc(-messages / (sigma * math.sqrt(2.0)))


def log_ratio(messages: Tensor, sigma: float) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """The log-likelihood ratio of bits under the claim as a linear map of them: weights `[d]`, and a constant.

    Args:
        messages: bounded, of the pair, `[2, d]` float64.
        sigma: σ of the claim.
    """
    ones = torch.special.log_ndtr(messages / sigma)
    zeros = torch.special.log_ndtr(-messages / sigma)
    weights = (ones[0] - ones[1]) - (zeros[0] - zeros[1])
    return weights.numpy(), float((zeros[0] - zeros[1]).sum())
