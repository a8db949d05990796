"""The migration guide says what the server does, and its Python does what it says.

`tests/browser` runs its JavaScript.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.typing import Subprotocol

from common_core.error_enums import ErrorCode
from huleedu_service_libs.connection_control import Disconnect, encode
from huleedu_service_libs.redis_channels import control_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from services.websocket_service.close_reasons import CLIENT_GONE, CLOSE_REASONS, Reconnect
from services.websocket_service.config import Settings
from services.websocket_service.frames import ResyncReason
from tests.contract.migration_page import MIGRATION_PAGE, code, migration_page, rows
from tests.gateway_process import GatewayProcess
from tests.service_process import ServiceProcess, token

GIVE_UP_AFTER_S = 30
FINAL = {Reconnect.STOP, Reconnect.NOT_REPEAT, Reconnect.NOT_BY_ITSELF}

Frame = dict[str, Any]
Tokens = Callable[[], Awaitable[str]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's clients use a proxy where the environment names one."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
async def publisher(redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    """What a backend service publishes with."""
    async with RedisClient(client_id="result_service", redis_url=redis_server.url) as client:
        yield client


@pytest.fixture
async def front(service: ServiceProcess) -> AsyncIterator[TcpProxy]:
    """The network between the client and the service."""
    async with TcpProxy(service.port) as proxy:
        yield proxy


def python_client(name: str) -> Callable[..., AsyncGenerator[Frame]]:
    """The guide's `notifications`."""
    namespace: dict[str, Any] = {}
    exec(code("python", name), namespace)
    return namespace["notifications"]  # type: ignore[no-any-return]


async def fetch_token() -> str:
    return token()


@contextlib.asynccontextmanager
async def listening(
    port: int, tokens: Tokens = fetch_token
) -> AsyncIterator[AsyncGenerator[Frame]]:
    """The guide's v1 client, once it is connected for the first time."""
    notifications = python_client("v1")(f"ws://127.0.0.1:{port}/ws", tokens)
    async with asyncio.timeout(GIVE_UP_AFTER_S), contextlib.aclosing(notifications) as received:
        assert await anext(received) == {"type": "resync", "reason": "not_resumed"}
        yield received


async def publish(publisher: RedisClient, number: int) -> None:
    await publisher.publish_user_notification("teacher-1", "counted", {"number": number})


async def number(received: AsyncGenerator[Frame]) -> int:
    """Of the next frame, which is a notification."""
    frame = await anext(received)
    assert frame["type"] == "notification", frame
    return int(frame["data"]["number"])


def test_close_codes_are_those_of_the_server() -> None:
    """The guide's table has each close that a client can see, and what it should do then."""
    told = {
        (int(number), error.strip("`"), should)
        for number, error, should, _ in rows("code", "`error_code`")
    }
    assert told == {
        (reason.code, reason.error_code or "–", reason.reconnect.value)  # noqa: RUF001 - the page's dash
        for reason in CLOSE_REASONS
    }


def test_every_code_that_is_named_exists() -> None:
    """No close code, error code or setting on the page is made up."""
    page = migration_page()
    known = {reason.code for reason in (*CLOSE_REASONS, CLIENT_GONE)} | {1001}
    assert {int(found) for found in re.findall(r"\b[14]0\d\d\b(?!_)", page)} <= known
    names = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", page)) - {
        "LONGEST_DELAY_MS",
        "LONGEST_DELAY_S",
    }
    assert names <= {*ErrorCode, *Settings.model_fields}


def test_both_examples_give_up_where_the_table_says_so() -> None:
    """The examples stop at those closes after which a client shall not come back by itself."""
    for language in ("js", "python"):
        found = re.search(r"FINAL = (?:new Set\(\[|\{)([\d, ]+)", code(language, "v1"))
        assert found is not None
        final = {int(number) for number in found[1].split(",")}
        # 1008 depends on the error code: a new token helps, or nothing does.
        assert final == {r.code for r in CLOSE_REASONS if r.reconnect in FINAL} - {1008}


def test_frames_of_the_examples_exist() -> None:
    """The examples wait for no type of frame that the server never sends."""
    protocol = MIGRATION_PAGE.with_name("PROTOCOL.md").read_text(encoding="utf-8")
    types = set(re.findall(r"^\| `(\w+)` \|", protocol, re.MULTILINE))
    for language in ("js", "python"):
        awaited = set(re.findall(r'case "(\w+)"', code(language, "v1")))
        assert awaited <= types
        assert {"welcome", "notification", "resync", "token_expiring"} <= awaited


def test_numbers_are_the_defaults() -> None:
    """Times and sizes in the guide are those of a service that nobody has told otherwise."""
    page = migration_page()
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert f"within {defaults['WEBSOCKET_TICKET_LIFETIME']} s" in page
    assert f"pings every {defaults['WEBSOCKET_PING_INTERVAL']} s" in page
    assert f"over {defaults['WEBSOCKET_MAX_MESSAGE_BYTES'] // 1024} KiB" in page
    assert defaults["WEBSOCKET_MAX_CONNECTIONS_PER_USER"] == 5
    assert "five tabs" in page


def test_links_lead_somewhere() -> None:
    """Each link on the page is to a file that exists, or to one of its headings."""
    page = migration_page()
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", page):
        path, _, anchor = target.partition("#")
        assert path == "" or (MIGRATION_PAGE.parent / path).is_file(), target
        assert path or anchor in headings, target


async def test_old_clients_are_told_what_the_page_says() -> None:
    """Whoever still comes to the old endpoint gets 410 and the body that the guide shows."""
    _, _, shown = migration_page().partition("```json\n")
    expected = json.loads(shown[: shown.index("```")])["error"]
    async with GatewayProcess() as gateway:
        path = f"/ws/v1/status/teacher-1?token={token()}"
        status, _, body = await gateway.http(path)
        with pytest.raises(InvalidStatus) as refusal:
            await connect(f"ws://127.0.0.1:{gateway.port}{path}")
    assert status == refusal.value.response.status_code == 410
    for answer in (body, refusal.value.response.body):
        error = json.loads(answer)["error"]
        assert error.keys() == expected.keys()
        same = error.keys() - {"correlation_id", "timestamp"}
        assert {name: error[name] for name in same} == {name: expected[name] for name in same}


async def test_plain_python_gets_what_it_always_got(service: ServiceProcess, redis: Redis) -> None:
    """With the new address the old client's messages are what was published, to the byte."""
    notifications = python_client("plain")(service.url, token())
    async with asyncio.timeout(GIVE_UP_AFTER_S), contextlib.aclosing(notifications) as received:
        waiting = asyncio.ensure_future(anext(received))
        published = {"event": "batch_results_ready", "data": {"batch_id": "batch-1"}}
        while not await redis.publish("ws:teacher-1", json.dumps(published)):
            assert not waiting.done()
        assert await waiting == published


async def test_plain_object_has_the_fields_of_the_page(
    service: ServiceProcess, publisher: RedisClient
) -> None:
    """A durable notification in the plain dialect is an object as the guide shows it."""
    shown = re.search(r'^\{"id".*?\}$', migration_page(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    async with service.connect() as client:
        await publish(publisher, 1)
        got = json.loads(await client.recv())
    assert list(json.loads(shown[0])) == list(got)


async def test_python_resumes(front: TcpProxy, publisher: RedisClient) -> None:
    """The guide's v1 client gets each notification once, also those that came while it was away."""
    async with listening(front.port) as received:
        await publish(publisher, 1)
        assert await number(received) == 1
        await front.refuse()
        await front.cut()
        await publish(publisher, 2)
        await front.accept()
        assert await number(received) == 2


async def test_python_comes_back_when_it_is_told_to(
    front: TcpProxy, publisher: RedisClient, redis: Redis
) -> None:
    """A client that is moved to another process comes back after the time that it is given."""
    async with listening(front.port) as received:
        await publish(publisher, 1)
        assert await number(received) == 1
        waiting = asyncio.ensure_future(number(received))
        told = encode(Disconnect(user_id="teacher-1", reconnect=True))
        assert await redis.publish(control_channel(), told) == 1

        async def is_back() -> bool:
            return front.accepted == 2

        await until(is_back)
        await publish(publisher, 2)
        assert await waiting == 2


async def test_python_hears_of_a_loss(
    front: TcpProxy, publisher: RedisClient, redis: Redis
) -> None:
    """Where Redis has lost its data the client is told to fetch its state, and goes on."""
    async with listening(front.port) as received:
        await publish(publisher, 1)
        assert await number(received) == 1
        await redis.flushall()
        await front.cut()
        frame = await anext(received)
        assert frame["type"] == "resync"
        assert frame["reason"] in set(ResyncReason)
        await publish(publisher, 2)
        assert await number(received) == 2


async def test_python_renews_its_token(
    service: ServiceProcess, front: TcpProxy, publisher: RedisClient
) -> None:
    """A token that is about to expire is replaced in place: the connection stays."""
    tokens = iter([token(exp=int(time.time()) + 4), token()])

    async def next_token() -> str:
        return next(tokens)

    async def is_renewed() -> bool:
        metrics = await service.metrics()
        return metrics.get('websocket_token_renewals_total{result="refreshed"}') == 1

    async with listening(front.port, next_token) as received:
        waiting = asyncio.ensure_future(number(received))
        await until(is_renewed)
        await publish(publisher, 1)
        assert await waiting == 1
    assert front.accepted == 1


async def test_python_fetches_a_new_token(front: TcpProxy) -> None:
    """A token that is refused is replaced by another, and then the client is in."""
    tokens = iter([token(exp=1), token()])

    async def next_token() -> str:
        return next(tokens)

    async with listening(front.port, next_token):
        assert front.accepted == 2


async def test_python_survives_the_words_of_a_proxy() -> None:
    """A close that some proxy has made up is taken for a network fault: the client comes back."""
    welcome = {"type": "welcome", "heartbeat_ms": 30_000, "cursor": None, "resumed": None}
    connections = 0

    async def answer(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await connection.close(1001, "proxy is restarting")
        else:
            await connection.send(json.dumps(welcome))
            await connection.wait_closed()

    dialect = Subprotocol("huleedu.notify.v1")
    async with serve(answer, "127.0.0.1", 0, subprotocols=[dialect]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with listening(port):
            assert connections == 2


async def test_python_gives_up_where_it_has_to(redis_server: RedisServer) -> None:
    """With too many tabs open the client does not fight the others for a place."""
    settings = {"WEBSOCKET_MAX_CONNECTIONS_PER_USER": "1"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        service.connect(),
    ):
        with pytest.raises(ConnectionClosedError) as closed:
            async with listening(service.port):
                pass
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4000
