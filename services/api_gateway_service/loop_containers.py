"""Dishka's container, once for each event loop."""

import asyncio
from collections.abc import Callable
from typing import Any

from dishka import AsyncContainer, Scope


class LoopContainers:
    """Is called like the container of the running loop, which it makes when there is none.

    Connections belong to a loop. A server has a single one, and closes its container with the
    lifespan. Whoever tests against the application comes without a lifespan or with several, in
    loops of their own; what is open there then ends with the loop, which closes its generators.
    """

    def __init__(self, create: Callable[[], AsyncContainer]) -> None:
        self._create = create
        self._containers: dict[asyncio.AbstractEventLoop, AsyncContainer] = {}

    def __call__(self, context: dict[Any, Any], *, scope: Scope) -> AsyncContainer:
        """A scope within it."""
        return self.current()(context, scope=scope)

    def current(self) -> AsyncContainer:
        """The running loop's."""
        loop = asyncio.get_running_loop()
        if loop not in self._containers:
            for known in [*self._containers]:
                if known.is_closed():
                    self._containers.pop(known, None)
            self._containers[loop] = self._create()
        return self._containers[loop]

    async def close(self) -> None:
        """Close the running loop's; the next one who asks gets another."""
        await self._containers.pop(asyncio.get_running_loop()).close()
