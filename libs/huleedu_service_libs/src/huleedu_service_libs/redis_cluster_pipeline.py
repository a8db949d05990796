"""Transactions in one hash slot of a Redis Cluster."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from redis.asyncio.client import Pipeline
from redis.exceptions import ClusterCrossSlotError, MovedError, WatchError

from huleedu_service_libs.redis_cluster_routes import (
    REDIRECTIONS,
    ClusterRoutes,
    Patience,
    slot_of_command,
)
from huleedu_service_libs.redis_deadlines import DeadlinePipeline

T = TypeVar("T")


class ClusterPipeline(DeadlinePipeline):
    """A MULTI/EXEC pipeline that goes to the master of its first key's slot.

    A node that does not queue one of the commands carries out none of them, so without a watch
    the whole is sent to where the node points. What is watched can't be followed: when its slot
    moves, that is a `WatchError` like any other change.
    """

    routes: ClusterRoutes

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        if self.connection is None:
            call = self._begin(args, options)
        else:
            call = self._go_on(Pipeline.immediate_execute_command(self, *args, **options))  # type: ignore[no-untyped-call]  # redis-py's
        return await self.rules.run(args[0], call)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's signature
        if self.connection is None and self.command_stack:
            call = self._execute_anywhere(raise_on_error=raise_on_error)
        else:
            call = self._go_on(Pipeline.execute(self, raise_on_error))
        return await self.rules.run("EXEC", call)

    async def _begin(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        route = await self.routes.route(slot_of_command(args))
        patience = Patience(self.rules.timeout_s)
        while True:
            self.connection_pool = route.server.connection_pool
            try:
                return await Pipeline.immediate_execute_command(self, *args, **options)  # type: ignore[no-untyped-call]  # redis-py's
            except REDIRECTIONS as refusal:
                await Pipeline.reset(self)  # type: ignore[no-untyped-call]  # redis-py's
                if patience.is_over:
                    raise
                # Else the keys are being moved: every further command would be refused too.
                if isinstance(refusal, MovedError):
                    route.redirect(refusal)
                await patience.pause()

    async def _go_on(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await call
        except REDIRECTIONS as refusal:
            self.routes.doubt()
            raise WatchError(f"the slot of the watched keys is moving: {refusal}") from refusal

    async def _execute_anywhere(self, *, raise_on_error: bool) -> list[Any]:
        commands = self.command_stack
        route = await self.routes.route(slot_of_command(commands[0][0]))
        patience = Patience(self.rules.timeout_s)
        slots: set[int] = set()
        while True:
            self.command_stack = commands
            self.connection_pool = route.server.connection_pool
            try:
                if route.asking:
                    await self._ask()
                return await Pipeline.execute(self, raise_on_error)
            except REDIRECTIONS as refusal:
                if patience.is_over:
                    raise
                if isinstance(refusal, MovedError):
                    slots.add(refusal.slot_id)
                if len(slots) > 1:
                    # Each node would refuse the keys of the other for ever.
                    raise ClusterCrossSlotError(
                        "the keys of a transaction have to be in one slot"
                    ) from refusal
                route.redirect(refusal)
                await patience.pause()

    async def _ask(self) -> None:
        # It holds for the next command, and when that is MULTI, to the end of the transaction.
        connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's
        self.connection = connection
        try:
            await connection.send_command("ASKING")
            await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            await Pipeline.reset(self)  # type: ignore[no-untyped-call]  # redis-py's
            raise
