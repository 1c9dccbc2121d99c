"""Checkpoints: a training's whole state on disk, there whole or not at all, every hash checked on load."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from delta.bundle.store import serialise_weights
from delta.config import canonical_hash
from delta.errors import CheckpointError, ConfigError, InputError
from delta.files import write_whole
from delta.training.folder_lock import InUseError, folder_lock

__all__ = ["FIT_VERSION", "Checkpoint", "CheckpointStore", "FitStore", "Warn", "checkpoint_steps"]

Warn = Callable[[str], None]
"""Told, in one line, of a checkpoint that is passed over."""

FIT_VERSION: int = 1
"""Of a fit's arithmetic: raise it when that changes, so that no weights of an older one are taken for its own."""

FORMAT = 1
_NAME = re.compile(r"step-(\d{9,})\.(safetensors|json)")
_STALE = re.compile(r"\.step-\d{9,}\.(safetensors|json)-.+")  # what a killed writer left


@dataclass(frozen=True)
class Checkpoint:
    """A training's state at the end of a step.

    Attributes:
        step: optimiser steps done.
        finished: whether the training is over; `tensors` is then the trained module's state alone.
        tensors: by name.
        state: plain JSON.
    """

    step: int
    finished: bool
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _DamagedError(Exception):
    """Why a checkpoint is passed over."""


def log_warning(message: str) -> None:
    """The warning of a caller who does not listen: to the log `delta`."""
    logging.getLogger("delta").warning(message)


def checkpoint_steps() -> int | None:
    """Steps after which a checkpoint is due, beside the clock: the variable DELTA_CHECKPOINT_STEPS, if it is set.

    Raises:
        ConfigError: it is no whole number of 1 or more.
    """
    text = os.environ.get("DELTA_CHECKPOINT_STEPS", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"DELTA_CHECKPOINT_STEPS is {text!r}; give a whole number of steps, 1 or more")
    return int(text)


class CheckpointStore:
    """The checkpoints of one training in a folder of its own: the newest and the one before it.

    A checkpoint is `step-N.safetensors`, and then `step-N.json`: a manifest that holds the SHA-256 of the
    tensors and of itself. Without its manifest a checkpoint is not there. One run writes at a time: who trains
    holds the folder, with `held` or `resumed`.

    Args:
        folder: made on first use.
        identity: of the training: a hash of everything that determines it.
        every_steps: a checkpoint is due after so many steps; none to go by time alone.
        every_s: a checkpoint is due after so many seconds, too.
        warn: told of damaged checkpoints.
        taken: told the seconds that the training had taken, when `latest` first returns a finished one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        every_steps: int | None = None,
        every_s: float = 30.0,
        warn: Warn = log_warning,
        taken: Callable[[float], None] | None = None,
    ) -> None:
        self._folder, self._identity, self._warn = folder, identity, warn
        self._every_steps, self._every_s = every_steps, every_s
        self._taken = taken
        self._written_at = time.monotonic()
        self._last: int | None = None  # the last step that is known to be stored intact

    def held(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder, which is made if need be.

        Raises:
            CheckpointError: another run holds it, or it cannot be locked.
        """
        return folder_lock(self._folder)

    @contextmanager
    def resumed(self) -> Iterator[Checkpoint | None]:
        """`held`, with the newest checkpoint; a finished one is for all, also while another run holds the folder.

        Raises:
            CheckpointError: as `held` and `latest`.
        """
        busy: InUseError | None = None
        with ExitStack() as stack:
            try:
                stack.enter_context(self.held())
            except InUseError as error:
                busy = error
            found = self.latest()
            if busy is not None and (found is None or not found.finished):
                raise busy
            yield found

    def due(self, step: int) -> bool:
        """Whether the state after `step` should be stored now."""
        if self._every_steps is not None and step - (self._last or 0) >= self._every_steps:
            return True
        return time.monotonic() - self._written_at >= self._every_s

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint, none where there is none; damaged ones are passed over, with a warning.

        Raises:
            CheckpointError: the folder holds another training's.
        """
        faults: list[str] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                found = self._read(step)
            except _DamagedError as error:
                faults.append(str(error))
                continue
            self._tell(faults, f"going on from step {step} before it")
            self._last = step
            if found.finished and self._taken is not None:
                self._taken(float(found.state.get("seconds", 0.0)))
                self._taken = None
            return found
        self._tell(faults, "no intact one is before it: starting anew")
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of one step; none, with a warning, where it is damaged.

        Raises:
            CheckpointError: it is another training's.
        """
        if step not in self._steps():
            return None
        try:
            found = self._read(step)
        except _DamagedError as error:
            self._tell([str(error)], "it cannot be used")
            return None
        self._last = step
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint; once it is durable, all but it and the one before it are deleted.

        The one before it is the newest that is known to be intact, beside a finished one, too: should that be
        damaged, the training is not lost.

        Raises:
            CheckpointError: it cannot be written; the ones before it stay.
        """
        tensors, manifest = self._paths(checkpoint.step)
        data = serialise_weights(checkpoint.tensors)
        content = {
            "format": FORMAT,
            "identity": self._identity,
            "step": checkpoint.step,
            "finished": checkpoint.finished,
            "tensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
            "state": checkpoint.state,
        }
        text = json.dumps({**content, "sha256": canonical_hash(content)}, indent=1, allow_nan=False)
        try:
            write_whole(tensors, data)
            write_whole(manifest, text.encode())
        except InputError as error:
            if not manifest.exists():
                _delete(tensors)  # of no use alone, and the disk may be full
            kept = "none is before it" if self._last is None else f"the one of step {self._last} is kept"
            raise CheckpointError(
                f"checkpoint of step {checkpoint.step}: {error}; {kept}: make room in {self._folder}, or "
                "choose another folder, and run again"
            ) from None
        before = {s for s in self._steps() if s < checkpoint.step}
        kept_too = {self._last} if self._last in before else {max(before)} if before else set()
        self._sweep({checkpoint.step} | kept_too)
        self._last, self._written_at = checkpoint.step, time.monotonic()

    def _paths(self, step: int) -> tuple[Path, Path]:
        stem = f"step-{step:09d}"
        return self._folder / f"{stem}.safetensors", self._folder / f"{stem}.json"

    def _steps(self) -> set[int]:
        """Of which steps there is a manifest."""
        matches = (_NAME.fullmatch(name) for name in self._names())
        return {int(match[1]) for match in matches if match is not None and match[2] == "json"}

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"checkpoints in {self._folder} cannot be read: {error.strerror}; choose another folder"
            ) from None

    def _read(self, step: int) -> Checkpoint:
        tensors, manifest = self._paths(step)
        content = _manifest(manifest)
        if content["identity"] != self._identity:
            raise CheckpointError(
                f"checkpoint {manifest} belongs to another configuration than this training's; choose another "
                "folder, or delete it"
            )
        try:
            data = tensors.read_bytes()
        except OSError as error:
            raise _DamagedError(f"checkpoint {tensors}: {error.strerror}") from None
        told = content["tensors"]
        if content["step"] != step:
            raise _DamagedError(f"checkpoint {manifest}: it is of step {content['step']}, renamed")
        if len(data) != told["bytes"]:
            raise _DamagedError(f"checkpoint {tensors}: {len(data)} bytes, expected {told['bytes']}")
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise _DamagedError(f"checkpoint {tensors}: SHA-256 differs")
        try:
            loaded = load_tensors(data)
        except SafetensorError:
            raise _DamagedError(f"checkpoint {tensors}: not safetensors") from None
        return Checkpoint(step, bool(content["finished"]), loaded, content["state"])

    def _tell(self, faults: list[str], then: str) -> None:
        for fault in faults:
            self._warn(f"{fault}; {then}")

    def _sweep(self, keep: set[int]) -> None:
        """Delete all but some steps, a manifest before its tensors, and what killed writers left."""
        for name in sorted(self._names()):  # json before safetensors
            match = _NAME.fullmatch(name)
            if _STALE.fullmatch(name) or (match is not None and int(match[1]) not in keep):
                _delete(self._folder / name)


class FitStore:
    """The checkpoints of several fits, each in a folder named by everything that determines its weights.

    A finished fit's weights are taken from there, and an interrupted one goes on where it was.

    Args:
        folder: made on first use.
        context: plain JSON that determines all fits: data fingerprint, code version, seed.
        every_steps: a checkpoint is due after so many steps.
        every_s: and after so many seconds.
        warn: told of damaged checkpoints.

    Attributes:
        taken: fits that were finished before, in the order in which they were taken from here, and the seconds
            that each had taken.
    """

    def __init__(
        self,
        folder: Path,
        context: Any,  # noqa: ANN401
        *,
        every_steps: int | None = None,
        every_s: float = 30.0,
        warn: Warn = log_warning,
    ) -> None:
        self._folder, self._context, self._warn = folder, context, warn
        self._every_steps, self._every_s = every_steps, every_s
        self.taken: dict[str, float] = {}

    def of(self, name: str, settings: Any) -> CheckpointStore:  # noqa: ANN401
        """The checkpoints of one fit.

        Args:
            name: of the fit, a part of its folder's name.
            settings: plain JSON that determines this fit beside the context.
        """
        identity = canonical_hash({"context": self._context, "name": name, "settings": settings})
        return CheckpointStore(
            self._folder / f"{name}-{identity[:16]}",
            identity=identity,
            every_steps=self._every_steps,
            every_s=self._every_s,
            warn=self._warn,
            taken=lambda seconds: self.taken.update({name: seconds}),
        )


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest whose own hash is right."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _DamagedError(f"checkpoint {path}: {error.strerror}") from None
    except ValueError:
        raise _DamagedError(f"checkpoint {path}: not JSON") from None
    told = content.pop("sha256", None) if isinstance(content, dict) else None
    try:
        right = told == canonical_hash(content)
    except ValueError:  # a NaN, which JSON does not know
        right = False
    if not right:
        raise _DamagedError(f"checkpoint {path}: SHA-256 differs")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} is of format {content.get('format')!r}, expected {FORMAT}; choose another "
            "folder, or delete it"
        )
    return cast(dict[str, Any], content)


def _delete(path: Path) -> None:
    """Delete a file that nobody needs; one that stays does no harm, and is tried again after the next save."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
