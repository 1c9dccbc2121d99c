"""A cell: one point with one seed, and what is stored of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import delta
from delta.config import Strict, canonical_hash
from delta.files import write_whole
from delta.frontier.grid import AttackPlan
from delta.training.checkpoint import FIT_VERSION, FitStore, Warn, checkpoint_steps, log_warning
from delta.training.run_config import RunConfig

__all__ = ["RESULT_VERSION", "Cell", "CellFolder", "read_stored", "write_stored"]

RESULT_VERSION: int = 1
"""Of what is measured, and how: raise it when that changes, so that no older figures stand beside new ones."""

_FREE = {"promote", "budget", "name"}  # settings that no figure depends on


class Cell(Strict):
    """What is measured in one go.

    Attributes:
        point: its number in the sweep.
        run: settings, the seed among them.
        attack: how it is attacked.
        data: hash over the data, and over the model that the run starts from: weights and code.
    """

    point: int
    run: RunConfig
    attack: AttackPlan
    data: str

    @property
    def identity(self) -> str:
        """SHA-256 in hex of everything that determines the figures; the point's number is not among it."""
        return canonical_hash(
            {
                "settings": self.run.model_dump(mode="json", exclude=_FREE),
                "attack": self.attack.model_dump(mode="json"),
                "version": RESULT_VERSION,
                **self.context,
            }
        )

    @property
    def context(self) -> dict[str, Any]:
        """What determines every fit beside its settings."""
        return {
            "data": self.data,
            "delta": delta.__version__,
            "fits": FIT_VERSION,
            "torch": torch.__version__,
        }

    @property
    def label(self) -> str:
        """How lines of output name it."""
        return f"point {self.point}, seed {self.run.seed}"


class CellFolder:
    """Where a sweep keeps a cell.

    Args:
        sweep: folder of the sweep.
        cell: the cell.
    """

    def __init__(self, sweep: Path, cell: Cell) -> None:
        self.path = sweep / "points" / cell.identity[:16]
        self.job = self.path / "job.json"
        self.log = self.path / "worker.log"
        self.bundle = self.path / "bundle"
        self._point, self._timing = self.path / "point.json", self.path / "timing.json"
        self._sweep, self._cell = sweep, cell

    def fits(self, *, warn: Warn = log_warning) -> FitStore:
        """Checkpoints, which all cells of a sweep share: fits of equal settings are trained once."""
        return FitStore(self._sweep / "fits", self._cell.context, every_steps=checkpoint_steps(), warn=warn)

    def figures(self, *, warn: Warn) -> dict[str, Any] | None:
        """What was measured; none where nothing was, or, with a warning, where the file is damaged."""
        found = read_stored(self._point, identity=self._cell.identity, warn=warn)
        if found is not None and not (self.bundle / "manifest.json").exists():
            warn(f"{self.bundle} is gone; {self._cell.label} is measured again")
            return None
        return found

    def keep_figures(self, figures: dict[str, Any]) -> None:
        """Store them, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        write_stored(self._point, figures, identity=self._cell.identity)

    def times(self, *, conditions: str, warn: Warn) -> dict[str, Any] | None:
        """Times of the private side that were taken under the same conditions, if there are any."""
        return read_stored(self._timing, identity=conditions, warn=warn, others_are_old=True)

    def keep_times(self, times: dict[str, Any], *, conditions: str) -> None:
        """Store times, under a hash of the conditions under which they were taken.

        Raises:
            InputError: the file cannot be written.
        """
        write_stored(self._timing, times, identity=conditions)

    def floor(self, identity: str) -> dict[str, Any] | None:
        """What an attack draws that sees nothing, where the sweep has trained it before."""
        # One that is damaged is trained again, which the caller sees by itself.
        return read_stored(self._floor(identity), identity=identity, warn=lambda _: None)

    def keep_floor(self, identity: str, figures: dict[str, Any]) -> None:
        """Store it for all cells.

        Raises:
            InputError: the file cannot be written.
        """
        write_stored(self._floor(identity), figures, identity=identity)

    def _floor(self, identity: str) -> Path:
        return self._sweep / "floors" / f"{identity[:16]}.json"


def write_stored(path: Path, value: dict[str, Any], *, identity: str) -> None:
    """Write figures with the hash of what they are of, and of themselves.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"identity": identity, "figures": value}
    text = json.dumps({**content, "sha256": canonical_hash(content)}, indent=1, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_stored(
    path: Path, *, identity: str, warn: Callable[[str], None], others_are_old: bool = False
) -> dict[str, Any] | None:
    """What `write_stored` wrote; none where there is no such file, or, with a warning, where it is damaged.

    Args:
        path: of the file.
        identity: of what its figures must be.
        warn: told of damage.
        others_are_old: figures of another identity are out of date, and no damage.
    """
    try:
        content = json.loads(path.read_bytes())
        told = content.pop("sha256")
        whole = told == canonical_hash(content) and isinstance(content["figures"], dict)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if whole and content["identity"] == identity:
        figures: dict[str, Any] = content["figures"]
        return figures
    if not (whole and others_are_old):
        warn(f"{path} is damaged; it is measured again")
    return None
