"""Who is the master, by the word of the sentinels and by its own."""

from functools import partial

from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_lookups import SharedLookup, ask, first_answer


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

    async def master(self) -> Endpoint:
        """The master of this moment.

        Raises redis-py's `ConnectionError` with the reasons, or `AuthenticationError`, where no
        sentinel names a server that is one. Has no time limit of its own.
        """
        return await self._lookup.fresh()

    async def known_master(self) -> Endpoint:
        """The one that was found last, or, if there is `doubt()`, the master of this moment."""
        return await self._lookup.known()

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
