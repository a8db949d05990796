"""The task that hears who has to go: revoked tokens, and connections that are to end.

What always holds:

1. Revocations are read only once the channel that announces them is subscribed, and read again
   after every `Gap`: one is heard or read, or both.
2. What was learnt is kept until it expires, also where Redis has lost it.
3. While that may be out of date, `is_revoked` admits nobody: it raises.
4. The task ends with its context and not before, whatever Redis does.

A second task gives back to Redis what that has lost, for processes that start later.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, NoReturn, Self

from redis.exceptions import RedisError

from common_core.timestamps import utc_now
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.connection_control import (
    ConfirmLeases,
    ControlMessageError,
    Disconnect,
    Revoked,
    parse,
)
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.payload import Gap
from huleedu_service_libs.redis_commands import DEFAULT_TIMEOUT_S
from huleedu_service_libs.revocation_list import Revocation, RevocationList
from huleedu_service_libs.subscription import SubscriptionOverflowError
from huleedu_service_libs.token_revocations import TokenRevocations
from services.websocket_service.protocols import (
    BackplaneHealthProtocol,
    BackplaneProtocol,
    BackplaneUnavailableError,
)

logger = create_service_logger(__name__)

FIRST_RETRY_DELAY_S: Final = 0.05
# Open connections have to learn within a second of Redis' return.
MAX_RETRY_DELAY_S: Final = 0.4
FORGET_INTERVAL_S: Final = 60.0
PROOF_INTERVAL_S: Final = 0.05
# All processes notice at once, and one is enough.
RESTORE_WITHIN_S: Final = 2.0


class ControlListener:
    """Keeps the revocations current, and tells `on_revoked` of each new one.

    An async context manager. It is entered at once, also while Redis is away; `is_current` tells.
    The callbacks must not wait. `on_revoked` is told of those read at the start, too.
    """

    def __init__(
        self,
        backplane: BackplaneProtocol,
        health: BackplaneHealthProtocol,
        channel: str,
        revocations: TokenRevocations,
        *,
        on_revoked: Callable[[Revocation], None],
        on_disconnect: Callable[[Disconnect], None],
        on_confirm: Callable[[str], None],
        patience_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._backplane = backplane
        self._health = health
        self._channel = channel
        self._revocations = revocations
        self._on_revoked = on_revoked
        self._on_disconnect = on_disconnect
        self._on_confirm = on_confirm
        self._patience_s = patience_s
        self._list = RevocationList()
        self._current = asyncio.Event()
        self._forget_at = 0.0
        self._said: str | None = None
        self._has_lost = asyncio.Event()
        self._running: list[asyncio.Task[NoReturn]] = []

    async def __aenter__(self) -> Self:
        self._running = [
            asyncio.create_task(self._run(), name="connection-control"),
            asyncio.create_task(self._restore(), name="revocations-restore"),
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._current.clear()
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def is_current(self) -> bool:
        """Whether all revocations are known that Redis has, as far as can be told."""
        return self._current.is_set() and self._health.hears

    def is_known(self, claims: JWTClaims) -> bool:
        """True for a token that is known to be revoked, however old that knowledge is."""
        return self._list.covers(claims)

    async def is_revoked(self, claims: JWTClaims) -> bool:
        """True for a revoked token.

        Any other waits for `patience_s` at most while revocations may be unknown: before they were
        first read, and from a `Gap` until they were read again. Raises BackplaneUnavailableError
        where they still may be.
        """
        if not self.is_current and not self.is_known(claims):
            await self._until_current()
        if self.is_known(claims):
            return True
        if not self.is_current:
            raise BackplaneUnavailableError("which tokens are revoked is not known at present")
        return False

    async def _until_current(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._current.wait()
                # Proven within milliseconds of a connection's beginning, or not for long.
                while not self.is_current:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(PROOF_INTERVAL_S)

    async def _run(self) -> NoReturn:
        delay_s = FIRST_RETRY_DELAY_S
        while True:
            try:
                async with self._backplane.subscribe(self._channel) as payloads:
                    await self._read()
                    delay_s = FIRST_RETRY_DELAY_S
                    while True:
                        if self._take(await payloads.next_batch()):
                            self._current.clear()
                            await self._read()
            except (BackplaneUnavailableError, RedisError, SubscriptionOverflowError) as error:
                self._interrupted(str(error))
            except Exception:
                # The last boundary of this task: whatever it is, nobody must go on unheard.
                logger.exception("control listener failed; it starts again")
            self._current.clear()
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, MAX_RETRY_DELAY_S)

    def _interrupted(self, cause: str) -> None:
        # Once, however often the same happens, until it is over.
        if cause != self._said:
            self._said = cause
            logger.warning("revocations are not heard", cause=cause)

    async def _read(self) -> None:
        kept = RevocationList()
        async with aclosing(self._revocations.pages()) as pages:
            async for page in pages:
                for revocation in page:
                    kept.add(revocation)
                    self._learn(revocation)
        self._current.set()
        self._list.forget(utc_now())
        if len(self._list) > len(kept):
            self._has_lost.set()
        if self._said is not None:
            self._said = None
            logger.info("revocations are heard again", revocations=len(self._list))

    async def _restore(self) -> NoReturn:
        while True:
            await self._has_lost.wait()
            self._has_lost.clear()
            await asyncio.sleep(random.uniform(0, RESTORE_WITHIN_S))
            try:
                restored = await self._revocations.restore(self._list)
                if restored:
                    logger.warning("Redis had lost revocations", restored=restored)
            except RedisError as error:
                # Where Redis is away, it is read again when it is back.
                logger.warning("revocations are not restored", cause=str(error))
            except Exception:
                # The last boundary of this task, as above.
                logger.exception("restoring revocations failed")

    def _take(self, batch: Sequence[bytes]) -> bool:
        """Act on all; True where others may be missing."""
        self._forget()
        for payload in batch:
            if not isinstance(payload, Gap):
                self._act(payload)
        return any(isinstance(payload, Gap) for payload in batch)

    def _act(self, payload: bytes) -> None:
        try:
            message = parse(payload)
        except ControlMessageError as error:
            # Whoever has access to Redis can publish anything.
            logger.warning("no control message", payload_bytes=len(payload), cause=str(error))
            return
        match message:
            case Revoked(revocation):
                self._learn(revocation)
            case Disconnect():
                self._on_disconnect(message)
            case ConfirmLeases(user_id):
                self._on_confirm(user_id)

    def _learn(self, revocation: Revocation) -> None:
        if self._list.add(revocation):
            self._on_revoked(revocation)

    def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_INTERVAL_S
            self._list.forget(utc_now())
