"""The tap on any other method that offloads: the tensors of the private half's first requests."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from delta.attacks.release_tap import victim_key
from delta.attacks.tap import Tap, look_ids
from delta.bundle.store import Bundle
from delta.errors import MethodError
from delta.methods.base import Method
from delta.methods.dp_input.noise import noise_of
from delta.methods.registry import method_class
from delta.methods.schema import CloudHalf, run_operation
from delta.methods.whole import allowed_targets
from delta.release.bounding import clip, normalise
from delta.release.ids import RecordIds
from delta.release.noise import NoiseKey
from delta.transport.base import Answer

__all__ = ["MethodTap"]

_BATCH = 64
_OPERATIONS = {"three-leg-race": 2}
_DEADLINE_S = 600.0


class _Enough(Exception):  # noqa: N818 (no error: it ends a private half's work)
    """Raised once the requests that are looked at are known."""


class _Listener:
    """A transport that keeps what is submitted, and answers with the method's own cloud half.

    Unlike a real one it raises from `submit` once it has heard enough, so that the private half stops there: the
    rest of the model costs much and is not looked at.

    Args:
        half: of the cloud.
        operations: how many of them are looked at, one after the other.
    """

    handshake_bytes = (0, 0)

    def __init__(self, half: CloudHalf, *, operations: int) -> None:
        self._half, self._operations = half, operations
        self.heard: dict[str, list[Tensor]] = {}

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Keep one request. A further operation ends it all, as does the first where no other is looked at."""
        if op not in self.heard and len(self.heard) == self._operations:
            raise _Enough
        if "x" in tensors:
            self.heard.setdefault(op, []).append(tensors["x"].detach().cpu().clone())
        if self._operations == 1:
            raise _Enough
        future: Future[Answer] = Future()
        future.set_result(Answer(run_operation(self._half, op, tensors), 0.0, 0, 0))
        return future

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_Half = tuple[Method, _Listener]


class MethodTap(Tap):
    """What a method's private half sends first of a record, as an image; deeper layers' requests are not looked at.

    Of three-leg-race that is the residual of the first two inputs of a convolution: that of the record itself is
    nothing where the record has as few channels as the low-rank part may have terms. Of the others it is one.

    The attacker's own pairs are captures under keys of its own: no formula of the mechanism is needed. They are
    computed on the CPU by the method itself, so once and not in every step of training.

    Args:
        bundle: of a method that offloads, other than `delta`.
        allow: import targets that it may build.

    Raises:
        MethodError: nothing leaves under the method, or what leaves is no tensor of the record.
    """

    name = "method"
    in_loop = False

    def __init__(self, bundle: Bundle, *, allow: Collection[str] = ()) -> None:
        self.name = bundle.manifest.method
        self._class = method_class(self.name)
        if not self._class.facts.offloads:
            raise MethodError(f"method {self.name!r} sends nothing, so there is nothing to attack")
        if "lattice" in self._class.facts.rests_on:
            raise MethodError(
                f"what leaves under method {self.name!r} is a ciphertext of a lattice scheme; these attacks learn "
                "from tensors of records and have nothing to say of it"
            )
        self._bundle = bundle
        self._allow = allowed_targets(bundle, allow)
        self._prime = bundle.manifest.settings.get("prime")
        self._made = 0
        self._operations = _OPERATIONS.get(self.name, 1)
        self._cloud = self._class.cloud_half(
            bundle.cloud_part, device=torch.device("cpu"), allowed=frozenset(self._allow)
        )
        blank = torch.zeros(2, *bundle.manifest.input.shape)
        seen = self._first_requests(self._half(None), blank, ["blank-0", "blank-1"])
        self.shape = (seen.shape[1], seen.shape[2], seen.shape[3])
        self.noisy = bool(
            set(self._class.facts.rests_on) & {"one-time pad", "local DP"} or self.name == "three-leg-race"
        )

    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """Captures under secrets of the attacker's own; they come from the system and not from the generator."""
        names = [f"auxiliary-{self._made + i}" for i in range(len(x))]
        self._made += len(x)
        return self._captured(x, names, looks=looks, fresh=True, seed=None)

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """First requests of the real private half.

        A fresh look is under another record id and by a private half that has started anew, which draws secrets of
        its own where the method has such.
        """
        return self._captured(x, ids, looks=looks, fresh=fresh, seed=seed)

    def templates(self, x: Tensor) -> Tensor:
        """What would leave of candidate records, `[n, d]`; for dp-input the noise is left out."""
        if self.name == "dp-input":
            noise = noise_of(self._bundle.manifest)
            bound = normalise if noise.bounding.kind == "normalise" else clip
            return bound(x, noise.bounding.clip_norm).flatten(1).float()
        return super().templates(x)

    def _captured(
        self, x: Tensor, ids: Sequence[str], *, looks: int, fresh: bool, seed: int | None
    ) -> Tensor:
        total = torch.zeros(len(x), *self.shape)
        half = self._half(seed)
        for look in range(looks):
            if look and fresh:
                half = self._half(None if seed is None else seed + 7919 * look)
            names = look_ids(ids, look if fresh else 0)
            done = 0
            while done < len(x):
                part = slice(done, done + _BATCH)
                rows = self._first_requests(half, x[part].cpu(), names[part])
                total[done : done + len(rows)] += rows
                done += len(rows)  # a request may hold fewer records than were asked about
        return total.div_(looks).to(x.device)

    def _half(self, seed: int | None) -> _Half:
        """A private half with a listener for a cloud; a seed makes its noise repeatable where it takes one."""
        options: dict[str, Any] = {"allow": tuple(self._allow)}
        if self._class.facts.releases:
            options["key"] = NoiseKey.generate() if seed is None else victim_key(seed)
        elif seed is not None and self.name == "three-leg-race":
            options["seed"] = seed
        half, listener = self._class.from_bundle(self._bundle, **options), self._listener()
        half.prepare(listener, deadline_s=_DEADLINE_S)
        return half, listener

    def _listener(self) -> _Listener:
        return _Listener(self._cloud, operations=self._operations)

    def _first_requests(self, made: _Half, x: Tensor, ids: Sequence[str]) -> Tensor:
        """What is looked at of the first of the records, as many as one request holds: `[n, *shape]` float32."""
        half, listener = made
        listener.heard.clear()
        with suppress(_Enough):
            half.infer(x, RecordIds(records=list(ids), subjects=[""] * len(x)))
        heard = [self._as_images(torch.cat(rows)) for rows in listener.heard.values()]
        if not heard or not 0 < len(heard[0]) <= len(x):
            raise MethodError(
                f"the first request of method {self.name!r} holds no tensor 'x' of records; it has no tap"
            )
        size = heard[0].shape[2:]
        same = [rows if rows.shape[2:] == size else interpolate(rows, size=size) for rows in heard]
        return torch.cat(same, dim=1)

    def _as_images(self, rows: Tensor) -> Tensor:
        """Rows of a request as `[n, channels, height, width]` float32, field elements in [−1, 1]."""
        record = self._bundle.manifest.input.shape
        if self._prime is not None and not rows.is_floating_point():
            rows = rows.double().mul_(2 / (float(self._prime) - 1)).sub_(1)
        if rows.dim() == 4:
            return rows.float()
        flat = rows.float().flatten(1)
        return flat.view(-1, *(record if flat.shape[1] == math.prod(record) else (flat.shape[1], 1, 1)))
