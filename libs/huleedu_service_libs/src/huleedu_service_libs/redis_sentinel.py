"""Who is the master, by the word of the sentinels and by its own."""

import asyncio
import contextlib
from functools import partial
from time import monotonic
from typing import Final

from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_lookups import SharedLookup, ask, first_answer

# A master that was replaced, but is well and in reach, goes on acknowledging what nobody hears
# until the sentinels demote it, ten seconds later at best. A check costs about 2 ms of CPU time.
CHECK_INTERVAL_S: Final = 1.0
# Longer than the head start of one sentinel before the next.
CHECK_TIMEOUT_S: Final = 0.4
# Commands that follow closely on each other never wait for a check.
MAX_AGE_S: Final = CHECK_INTERVAL_S + CHECK_TIMEOUT_S


class SentinelSet:
    """Asks the sentinels of an address for its master, one after the other.

    An answer counts once the server that it names says of itself that it is a master: for some
    seconds of a failover, and for longer where it is cut off, a sentinel names the old one.
    """

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        # Who answered last is asked first.
        self._sentinels = list(address.endpoints)
        self._lookup = SharedLookup(self._look_up)
        self._check: asyncio.Task[None] | None = None
        # With or without success.
        self._checked_at = float("-inf")

    async def master(self) -> Endpoint:
        """The master of this moment.

        Raises redis-py's `ConnectionError` with the reasons, or `AuthenticationError`, where no
        sentinel names a server that is one. Has no time limit of its own.
        """
        return await self._lookup.fresh()

    def known_master(self) -> Endpoint | None:
        """The one that was found last; None if there is `doubt()`, or that was too long ago.

        Has the master looked for anew every `CHECK_INTERVAL_S`, beside the commands.
        """
        age_s = monotonic() - self._checked_at
        if age_s >= CHECK_INTERVAL_S:
            self._begin_to_check()
            if age_s >= MAX_AGE_S:
                return None
        return self._lookup.undoubted

    async def likely_master(self) -> Endpoint:
        """The master of this moment, or the one that was found last where no sentinel answers.

        That one only if there is no `doubt()`; else, raises as `master()` does.
        """
        if monotonic() - self._checked_at >= MAX_AGE_S:
            await asyncio.wait([self._begin_to_check()])
        return await self._lookup.known()

    def _begin_to_check(self) -> asyncio.Task[None]:
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_in_time(), name="redis-master")
        return self._check

    async def _check_in_time(self) -> None:
        # Sentinels that can't be reached say nothing against the master.
        with contextlib.suppress(TimeoutError, RedisError):
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._lookup.fresh()
        self._checked_at = monotonic()

    async def aclose(self) -> None:
        """End the check that may be under way; no command may come any more."""
        if self._check is not None:
            self._check.cancel()
            await asyncio.wait([self._check])

    def doubt(self) -> None:
        """The master has not answered, or as a replica does."""
        self._lookup.doubt()

    async def _look_up(self) -> Endpoint:
        sentinel, master = await first_answer(
            {sentinel: partial(self._ask, sentinel) for sentinel in self._sentinels},
            f"no sentinel knows a master for {self._address.service_name}",
        )
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        self._checked_at = monotonic()
        return master

    async def _ask(self, sentinel: Endpoint) -> tuple[Endpoint, Endpoint]:
        name = self._address.service_name
        (named,) = await ask(
            self._address.connection(sentinel, to_sentinel=True),
            ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name],
        )
        if named is None:
            raise RedisConnectionError(f"does not know {name}")
        master = Endpoint(named[0], int(named[1]))
        try:
            # Not ROLE or INFO: these are for administrators in many access lists.
            (hello,) = await ask(self._address.connection(master), ["HELLO", "2"])
        except AuthenticationError as error:
            raise AuthenticationError(f"names {master}: {error}") from error
        role = hello[hello.index("role") + 1]
        if role != "master":
            raise RedisConnectionError(f"names {master}, which is a {role}")
        return sentinel, master
