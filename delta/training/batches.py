"""How a fit's records share out into batches: the one place that knows how many steps a fit takes."""

from __future__ import annotations

from delta.training.config import FitConfig

__all__ = ["batch_starts", "steps_of"]


def batch_starts(records: int, config: FitConfig, *, processes: int = 1) -> list[int]:
    """Where each batch of an epoch begins; a last one of fewer than 2 records a process is dropped (batch norm)."""
    batch = max(1, min(config.batch, records))
    return [start for start in range(0, records, batch) if records - start >= 2 * processes]


def steps_of(records: int, config: FitConfig) -> int:
    """Steps of a fit by one process; several of them take as many, or one fewer an epoch."""
    return config.epochs * len(batch_starts(records, config))
