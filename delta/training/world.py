"""The processes that train one model together: a server's own, or torchrun's (`python -m torch.distributed.run`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from delta.errors import ConfigError

__all__ = ["ALONE", "RENDEZVOUS", "World"]

RENDEZVOUS = "DELTA_RENDEZVOUS"
"""Environment variable: the file through which processes of one machine find each other; without it, torchrun's way."""


@dataclass(frozen=True)
class World:
    """This process among those that train one model.

    Attributes:
        rank: of this process, from 0; rank 0 alone writes and reports.
        size: how many there are.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @classmethod
    @contextmanager
    def from_environment(cls, device: torch.device) -> Iterator[World]:
        """The world that the environment declares, joined for as long as the context lasts; or alone.

        `RANK`, `WORLD_SIZE` and `LOCAL_RANK` are as torchrun sets them. With `DELTA_RENDEZVOUS` the processes meet
        in that file, and no port is opened for it. They talk through gloo on the CPU and through NCCL on CUDA,
        where `LOCAL_RANK` picks the device.

        Raises:
            ConfigError: the environment is incomplete, or there are fewer devices than processes.
        """
        if "WORLD_SIZE" not in os.environ:
            yield cls(0, 1, device)
            return
        try:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local = int(os.environ["LOCAL_RANK"])
        except (KeyError, ValueError):
            raise ConfigError(
                "WORLD_SIZE is set, but RANK, WORLD_SIZE and LOCAL_RANK are not all numbers; start the "
                "processes with torchrun, or unset WORLD_SIZE"
            ) from None
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {local} of this machine has no CUDA device ({torch.cuda.device_count()} here); "
                    "start no more processes than devices"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        meeting = os.environ.get(RENDEZVOUS)
        # Not an init_method of file://, which reads some characters of a path as parts of an address.
        store = distributed.FileStore(meeting, size) if meeting is not None else None  # type: ignore[attr-defined]
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size, store=store
        )
        try:
            yield cls(rank, size, device)
        finally:
            distributed.destroy_process_group()

    @contextmanager
    def shared(self, model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """The module to call in a training step: the model itself, or wrapped so that gradients are averaged.

        On CUDA batch normalisation sees the whole batch while this lasts; on the CPU, which has no such
        kernel, each process normalises its own part and keeps rank 0's running statistics.
        """
        if self.size == 1:
            yield model
            return
        cuda = device.type == "cuda"
        modules = dict(model.named_modules()) if cuda else {}
        if cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        try:
            yield DistributedDataParallel(model, device_ids=[device] if cuda else None)
            for buffer in model.buffers():  # each process has updated its own in the last step
                distributed.broadcast(buffer, src=0)
        finally:
            for name, module in modules.items():  # they share their weights and buffers with what stood in
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and name:
                    parent, _, child = name.rpartition(".")
                    setattr(modules[parent], child, module)

    def part(self, index: Tensor) -> Tensor:
        """This process's part of a batch's record indices `[b]`; all parts are of one size."""
        return index[self.rank : len(index) - len(index) % self.size : self.size]

    def meet(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()


ALONE = World(0, 1, torch.device("cpu"))
