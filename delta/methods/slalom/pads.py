"""Pools of one-time pads: made ahead of the records, popped, never used twice."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from delta.errors import InternalError
from delta.methods.slalom.blinding import Pad, pad_of
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import exact_product
from delta.methods.slalom.stream import SecretStream

__all__ = ["Pads", "pad_bytes"]

_AT_ONCE = 32


def pad_bytes(layers: Sequence[QuantLayer]) -> int:
    """Bytes of one record's pads, of all layers together."""
    return 4 * sum(layer.spec.inputs + layer.spec.outputs for layer in layers)


class Pads:
    """The pads of all layers, in this process's memory alone.

    To make one costs the private side the layer itself, once a record: u = W·r is as large a product as W·x.
    Another process must not go on with them, which would use pads twice: after a fork, the child starts anew.

    Args:
        layers: of the model, in order.
    """

    def __init__(self, layers: Sequence[QuantLayer]) -> None:
        self._layers = tuple(layers)
        self._lock = threading.Lock()
        self._start_anew()

    def __repr__(self) -> str:
        return f"Pads({len(self._layers)} layers)"

    @property
    def left(self) -> int:
        """Records for which every layer has a pad."""
        with self._lock:
            self._notice_fork()
            return min(self._counts)

    def add(self, records: int) -> float:
        """Make pads for further records; returns the milliseconds that it took."""
        return self._fill(records, beside=True)

    def ensure(self, records: int) -> float:
        """Make what is missing for so many records; returns the milliseconds that it took."""
        return self._fill(records, beside=False)

    def take(self, index: int, records: int) -> Pad:
        """Pads of a layer, gone from the pool with this.

        Raises:
            InternalError: there are too few; `ensure` comes first.
        """
        with self._lock:
            self._notice_fork()
            if records > self._counts[index]:
                raise InternalError("too few pads are left; make them before the call")
            self._counts[index] -= records
            taken: list[Pad] = []
            while records:
                pad = self._pools[index].popleft()
                used = min(records, len(pad.blinding))
                taken.append(Pad(pad.blinding[:used], pad.unblinding[:used]))
                if used < len(pad.blinding):
                    self._pools[index].appendleft(Pad(pad.blinding[used:], pad.unblinding[used:]))
                records -= used
        return taken[0] if len(taken) == 1 else _joined(taken)

    def _fill(self, records: int, *, beside: bool) -> float:
        started = time.perf_counter()
        with self._lock, torch.inference_mode():
            self._notice_fork()
            for index, count in enumerate(self._counts):
                missing = records if beside else records - count
                for start in range(0, missing, _AT_ONCE):
                    size = min(_AT_ONCE, missing - start)
                    self._pools[index].append(self._make(self._layers[index], size))
                    self._counts[index] += size
        return 1e3 * (time.perf_counter() - started)

    def _make(self, layer: QuantLayer, records: int) -> Pad:
        spec = layer.spec
        elements = self._stream.elements(records * spec.inputs).view(records, spec.inputs)
        blinding = elements + layer.clip
        products = exact_product(spec, layer.integers, blinding.view(records, *spec.input_shape))
        return pad_of(layer, elements, products.view(records, spec.outputs))

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._start_anew()

    def _start_anew(self) -> None:
        self._process = os.getpid()
        self._stream = SecretStream()
        self._pools: list[deque[Pad]] = [deque() for _ in self._layers]
        self._counts = [0] * len(self._layers)


def _joined(pads: Sequence[Pad]) -> Pad:
    def join(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    return Pad(join([pad.blinding for pad in pads]), join([pad.unblinding for pad in pads]))
