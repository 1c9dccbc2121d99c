"""The folder of a run: what it keeps, and that it is this run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import delta
from delta.config import canonical_hash
from delta.errors import CheckpointError, InputError
from delta.files import write_whole
from delta.training.checkpoint import FIT_VERSION, FitStore, Warn, checkpoint_steps, log_warning
from delta.training.folder_lock import folder_lock
from delta.training.run_config import RunConfig

__all__ = ["RunFolder"]

_FREE = {"promote", "budget", "name"}  # settings that no stored state depends on


class RunFolder:
    """Where a run keeps its checkpoints, released bytes, keys, ledger and bundle.

    A run that was cut goes on here when it is started again with the same configuration and data.

    Args:
        path: of the folder, made on first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bundle = path / "bundle"
        self.releases = path / "releases"
        self.ledger = path / "ledger.jsonl"
        self.token = path / "tenant.token"
        self.noise_key = path / "noise.key"
        self.cloud_store = path / "cloud"
        self.cloud_log = path / "cloud.log"
        self.summary = path / "summary.json"
        self._checkpoints = path / "checkpoints"
        self._run = path / "run.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made if it is absent, for this process alone.

        Raises:
            CheckpointError: another process holds it.
            InputError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made: {error.strerror}; choose another --out") from None
        with folder_lock(self.path):
            yield

    def claim(
        self,
        config: RunConfig,
        *,
        data: str,
        restart: bool = False,
        checkpoints: Path | None = None,
        warn: Warn = log_warning,
    ) -> FitStore:
        """Make the folder this run's, or find that it is; returns its checkpoints.

        Args:
            config: of the run.
            data: fingerprint of its data, and of the model that it starts from: weights and code.
            restart: give up the checkpoints of whatever run is there. Released bytes and the ledger stay: what
                was sent was sent.
            checkpoints: another folder for them, which runs may share.
            warn: told of damaged checkpoints.

        Raises:
            CheckpointError: it holds another run, or its note is damaged; nothing is changed.
            InputError: it cannot be written.
        """
        settings = {"config": config.model_dump(mode="json", exclude=_FREE), "data": data}
        if restart:
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        elif self._run.exists():
            self._check(settings)
        note = {**settings, "identity": canonical_hash(settings), "delta": delta.__version__}
        write_whole(self._run, json.dumps(note, indent=1).encode() + b"\n", mode=0o600)
        # What determines fits beside their settings: data and model, and the code that computes.
        context = {"data": data, "delta": delta.__version__, "fits": FIT_VERSION, "torch": torch.__version__}
        return FitStore(checkpoints or self._checkpoints, context, every_steps=checkpoint_steps(), warn=warn)

    def _check(self, settings: dict[str, Any]) -> None:
        advice = "choose another --out, or give up what it holds with --restart"
        try:
            found = json.loads(self._run.read_bytes())
            held = {"config": found["config"], "data": found["data"]}
            if found["identity"] != canonical_hash(held):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{self._run} is damaged; {advice}") from None
        other = sorted(_differences(held["config"], settings["config"]))
        if held["data"] != settings["data"]:
            other.append("the data or the model's weights or code")
        if other:
            raise CheckpointError(
                f"{self.path} holds a run of another configuration, which differs in {', '.join(other)}; {advice}"
            )


def _differences(one: Any, other: Any, where: str = "") -> set[str]:  # noqa: ANN401
    """Names of the settings that differ, such as `cloud_fit.epochs`."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = set()
        for key in one.keys() | other.keys():
            name = f"{where}.{key}" if where else str(key)
            found |= _differences(one.get(key), other.get(key), name)
        return found
    return set() if one == other else {where}
