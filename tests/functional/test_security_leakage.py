"""No payload ever reaches another user's socket, however everybody comes and goes."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import pytest
import websockets
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from huleedu_service_libs.connection_control import ConnectionControl
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.token_revocations import TokenRevocations
from tests.functional.outcomes import V1
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

USERS: Final = (
    "a",
    "A",
    "a ",
    "aa",
    "a:",
    "a:b",
    ":a",
    "ws:a",
    "{a}",
    "{ws:a}",
    "}a{",
    "a*",
    "*",
    "?",
    "[a-z]",
    "\\a",
    "á",
    "a\u0301",
    "\u0430",  # the Cyrillic letter
    "a\u200b",
    "a\x00",
    "a\n",
    "👩",
    "👩‍🏫",
)
SESSIONS: Final = 400
AT_ONCE: Final = 40
DEADLINE_S: Final = 80
SEEDS: Final = (1, 2)
EXPECTED_CODES: Final = {1000, 1008, 1012, 1013}
SETTINGS: Final = {"WEBSOCKET_MAX_CONNECTIONS_PER_USER": "50", "WEBSOCKET_RETRY_AFTER": "0.01"}


class Churn:
    """Sessions at random on two processes, all of whom look at whose payloads they get."""

    def __init__(
        self, services: Sequence[ServiceProcess], redis: Redis, publisher: RedisClient, seed: int
    ) -> None:
        self._services = services
        self._redis = redis
        self._publisher = publisher
        self._seed = seed
        self._control = ConnectionControl(publisher)
        self._revocations = TokenRevocations(publisher, retention_s=3600)
        self._cursors: dict[str, str] = {}
        self.leaks: list[tuple[str, str]] = []
        """Who has got something, and what it was."""
        self.received: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.codes: set[int] = set()
        self.is_over = False

    async def run(self) -> None:
        limit = asyncio.Semaphore(AT_ONCE)

        async def session(number: int) -> None:
            async with limit:
                await self._session(random.Random(f"{self._seed} {number}"), number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(SESSIONS):
                tasks.create_task(session(number))
        self.is_over = True

    async def _session(self, choose: random.Random, number: int) -> None:
        user = choose.choice(USERS)
        bearer = token(user, jti=f"{self._seed}-{number}", iat=time.time())
        async with await self._connection(choose, user, bearer) as client:
            heard = asyncio.Event()
            reading = asyncio.create_task(self._read(client, user, f"mark-{number}", heard))
            for _ in range(choose.randrange(6)):
                await self._act(choose, client, user, number)
            # By the time that this has come all that was published before it would have.
            await self._publish_raw(user, f"mark-{number}")
            waiting = asyncio.create_task(heard.wait())
            await asyncio.wait([waiting, reading], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if choose.random() < 0.3:
                client.transport.abort()
            else:
                await client.close()
            await reading

    async def _connection(
        self, choose: random.Random, user: str, bearer: str
    ) -> websockets.connect:
        service = choose.choice(self._services)
        subprotocols = [V1] if choose.random() < 0.7 else []
        cursor = self._cursors.get(choose.choice([user, user, choose.choice(USERS)]))
        query = "" if cursor is None else f"cursor={quote(cursor)}&"
        headers = {}
        match choose.choice(["header", "ticket", "query", "subprotocol"]):
            case "header":
                headers = {"Authorization": f"Bearer {bearer}"}
            case "query":
                query += f"token={bearer}"
            case "subprotocol":
                subprotocols.append(f"bearer.{bearer}")
            case _:
                query += f"ticket={await self._ticket(choose.choice(self._services), bearer)}"
        return websockets.connect(
            f"{service.url}?{query}",
            additional_headers=headers,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            proxy=None,
            close_timeout=5,
        )

    async def _ticket(self, service: ServiceProcess, bearer: str) -> str:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Length": "0"}
        status, _, body = await service.http("/v1/tickets", method="POST", headers=headers)
        assert status == 201, body
        return str(json.loads(body)["ticket"])

    async def _act(
        self, choose: random.Random, client: ClientConnection, user: str, number: int
    ) -> None:
        whose = choose.choice(USERS)
        action = choose.choices(
            ["raw", "durable", "renew", "take over", "revoke", "disconnect", "move", "burst"],
            [8, 8, 3, 1, 1, 1, 1, 2],
        )[0]
        self.events[action] += 1
        match action:
            case "raw":
                await self._publish_raw(whose, "raw")
            case "durable":
                await self._publish_durable(whose)
            case "renew":
                await self._authenticate(client, user)
            case "take over":
                await self._authenticate(client, whose)
            case "revoke":
                await self._revocations.revoke_token(f"{self._seed}-{choose.randrange(number + 1)}")
            case "disconnect":
                await self._control.disconnect(user_id=whose)
            case "move":
                await self._control.disconnect(user_id=whose, reconnect=True)
            case _:
                await asyncio.gather(*(self._publish_durable(other) for other in USERS))

    async def _authenticate(self, client: ClientConnection, user: str) -> None:
        try:
            await client.send(json.dumps({"type": "authenticate", "token": token(user)}))
        except ConnectionClosed:
            self.events["too late"] += 1

    async def _publish_raw(self, user: str, mark: str) -> None:
        payload = {"event": mark, "data": {"for": user}}
        await self._redis.publish(f"ws:{user}", json.dumps(payload))

    async def _publish_durable(self, user: str) -> None:
        await self._publisher.publish_notification(
            Notification(
                user_id=user,
                event_type="durable",
                data={"for": user},
                collapse_key="latest" if random.random() < 0.2 else None,
            )
        )

    async def _read(
        self, client: ClientConnection, user: str, mark: str, heard: asyncio.Event
    ) -> None:
        try:
            while True:
                message = json.loads(await client.recv())
                for frame in message if isinstance(message, list) else [message]:
                    self._look_at(frame, user)
                    if frame.get("event") == mark:
                        heard.set()
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 1000
            self.events[str(code)] += 1
            self.codes.add(code)

    def _look_at(self, frame: dict[str, Any], user: str) -> None:
        whose = frame.get("user_id", user)
        if "data" in frame:
            whose = frame["data"]["for"]
            self.received[user] += 1
            if "id" in frame and whose == user:
                self._cursors[user] = frame["id"]
        elif frame.get("type") == "welcome":
            self.events[f"resumed {frame['resumed']}"] += 1
        if whose != user:
            self.leaks.append((user, json.dumps(frame)))


@pytest.mark.parametrize("seed", SEEDS)
async def test_nobody_gets_what_is_somebody_elses(redis_server: RedisServer, seed: int) -> None:
    """Users who look alike come, resume, renew, are thrown out: each sees its own alone."""
    async with (
        ServiceProcess(redis_server.url, settings=SETTINGS) as one,
        ServiceProcess(redis_server.url, settings=SETTINGS) as other,
        Redis(port=redis_server.port) as redis,
        RedisClient(client_id="result_service", redis_url=redis_server.url) as publisher,
    ):
        churn = Churn([one, other], redis, publisher, seed)
        with contextlib.suppress(TimeoutError):
            # Who waits for what went to somebody else waits for ever.
            async with asyncio.timeout(DEADLINE_S):
                await churn.run()
        assert churn.leaks == []
        assert churn.is_over
        assert churn.codes <= EXPECTED_CODES
        # Nothing of this would mean anything if little had happened.
        assert set(churn.received) == set(USERS)
        assert churn.received.total() > SESSIONS
        happened = churn.events
        for event in ("resumed True", "resumed False", "resumed None", "1008", "1012", "take over"):
            assert happened[event], happened
        for service in (one, other):
            assert "Traceback" not in service.output()
