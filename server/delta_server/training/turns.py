"""Whose job trains next: tenants take turns, however many jobs one of them has waiting."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Turns"]


class Turns:
    """A number of places, handed out tenant by tenant; lives on the event loop.

    Whoever has the fewest is next, and of these the one who has waited longest since their last turn ended.

    Args:
        places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the longest wait first

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place once it is the tenant's turn."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._give_back(tenant)

    async def _take(self, tenant: str) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        self._hand_out()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had come just then
                self._give_back(tenant)
            else:
                self._leave(tenant, mine)
            raise

    def _give_back(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        if tenant in self._waiting:
            self._waiting[tenant] = self._waiting.pop(tenant)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            tenant = min(self._waiting, key=lambda name: self._held[name])
            mine = self._waiting[tenant][0]
            self._leave(tenant, mine)
            if mine.done():  # it is being called off
                continue
            self._free -= 1
            self._held[tenant] += 1
            mine.set_result(None)

    def _leave(self, tenant: str, mine: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant)
        if queue is None or mine not in queue:
            return
        queue.remove(mine)
        if not queue:
            del self._waiting[tenant]
