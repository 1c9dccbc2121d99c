"""How a bundle's models were trained, as far as an attacker can know: what its shadow models copy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta.bundle.store import Bundle
from delta.data.records import Dataset
from delta.errors import ConfigError, DataError
from delta.training.config import TrainConfig
from delta.training.run_config import RunConfig

__all__ = ["Recipe", "recipe_of"]

_RUN = "run.json"


@dataclass(frozen=True)
class Recipe:
    """A training's settings, and where they are from.

    Attributes:
        config: seed, share of records held out, and the fits of the cloud and the main model.
        notes: in what shadow models differ from the bundle's, one line each.
        limit: training records that the run was limited to; none for all.
    """

    config: TrainConfig
    notes: tuple[str, ...] = ()
    limit: int | None = None

    def members(self, data: Dataset) -> Dataset:
        """The training records that the bundle's models were fitted on: those that were not held out.

        Args:
            data: all training records, as the run loaded them.

        Raises:
            ConfigError: there are too few records to hold any out as the run did.
        """
        try:
            rest, _ = data.limited(self.limit, seed=self.config.seed).stratified_split(
                fraction=self.config.held_out, seed=self.config.seed
            )
        except DataError as error:
            raise ConfigError(f"the run's share of records cannot be held out: {error}") from None
        return rest


def recipe_of(bundle: Bundle, directory: Path | None = None) -> Recipe:
    """The settings of the run that left a bundle: the note in its run's folder, or the defaults.

    Args:
        bundle: of method `delta`.
        directory: where it lies; `delta train` leaves its note one folder up.
    """
    lineage = bundle.manifest.lineage
    seed = int(lineage["seed"]) if lineage.get("seed", "").isdigit() else 0
    settings: dict[str, Any] = {"noise": "none", "seed": seed}
    found = None if directory is None else _noted(directory.absolute().parent / _RUN)
    config = TrainConfig.of(settings) if found is None else found.training
    notes = []
    if found is None:
        notes.append(
            "the run's settings do not lie beside the bundle: shadow models take the default ones, and members "
            "of the bundle's own models are guessed from its seed"
        )
    if config.mode == "interactive":
        notes.append(
            "the cloud model was trained in exchanges; shadow models train on stored releases by themselves"
        )
    if config.views > 1:
        notes.append(f"the run released {config.views} views of each record; shadow models see one")
    return Recipe(config, tuple(notes), None if found is None else found.data.limit)


def _noted(path: Path) -> RunConfig | None:
    """The configuration that a run's folder notes; none where there is no such note, or none that can be read."""
    try:
        return RunConfig.parse(json.loads(path.read_bytes())["config"], what=str(path))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None
