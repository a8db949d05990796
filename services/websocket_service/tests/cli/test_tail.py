from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.websocket_service.tests.cli.conftest import Dev
    from services.websocket_service.tests.cli.console import Console

WELCOME = json.dumps({"type": "welcome", "user_id": "u", "heartbeat_ms": 30_000})
DIALECT = Subprotocol("huleedu.notify.v1")
TOKEN = "aaa.bbb.ccc"


def welcome(**fields: object) -> str:
    return json.dumps({**json.loads(WELCOME), "resumed": None, **fields})


def notification(number: int, **fields: object) -> dict[str, object]:
    return {"type": "notification", "event": f"event_{number}", "data": {"n": number}, **fields}


@contextlib.asynccontextmanager
async def service(
    handler: Callable[[ServerConnection], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server of the v1 dialect that does what the test wants; yields its URL."""
    server: Server
    async with serve(handler, "127.0.0.1", 0, subprotocols=[DIALECT]) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


async def test_notifications_of_a_running_dev_are_shown(console: Console, dev: Dev) -> None:
    """Each line has time, event and data; after the asked number it ends with status 0."""
    async with console.start("tail", "--user", "pupil", "--count", "2") as tail:
        await tail.error_line(f"connected to ws://127.0.0.1:{dev.port}/ws as pupil")
        for number in (1, 2):
            published = await console.run(
                *("notify", "--user", "pupil", "--event", f"event_{number}"),
                *("--data", f'{{"n": {number}}}'),
            )
            assert published.out.endswith(", received by 1 process\n")
            _, event, data = (await tail.line()).split("  ")
            assert (event, json.loads(data)) == (f"event_{number}", {"n": number})
        result = await tail.ended()
    assert (result.status, result.out, result.err) == (0, "", "")


async def test_the_url_that_dev_prints_can_be_pasted(console: Console, dev: Dev) -> None:
    """The token in it is used, and does not travel in the URL."""
    async with console.start("tail", "--url", dev.url) as tail:
        line = await tail.error_line("connected")
        assert dev.token not in line
        assert line.startswith(f"connected to ws://127.0.0.1:{dev.port}/ws as teacher-1")


async def test_ctrl_c_ends_it_quietly(console: Console, dev: Dev) -> None:
    """Status 0, no traceback, however often it is pressed."""
    async with console.start("tail", "--port", str(dev.port)) as tail:
        await tail.error_line("connected")
        tail.interrupt()
        tail.interrupt()
        result = await tail.ended()
    assert (result.status, result.out, result.err) == (0, "", "")


async def test_a_script_gets_each_object_of_each_frame_as_a_line(console: Console) -> None:
    """An array in one frame is several lines; routine frames are left out unless asked for."""
    heartbeat = {"type": "heartbeat", "at": "2026-01-01T00:00:00+00:00"}
    sent = [notification(1, metadata={"é": "\u0085"}), heartbeat, notification(2)]

    async def handler(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(json.dumps(sent))
        await connection.wait_closed()

    async with service(handler) as url:
        common = ("tail", "--url", url, "--token", TOKEN, "--json", "--count", "2")
        quiet = await console.run(*common)
        verbose = await console.run(*common, "--verbose")
    assert [json.loads(line) for line in quiet.out.split("\n")[:-1]] == [sent[0], sent[2]]
    assert [json.loads(line) for line in verbose.out.split("\n")[:-1]] == [
        json.loads(WELCOME),
        *sent,
    ]


async def test_the_credential_travels_in_the_handshake_headers(console: Console) -> None:
    """A URL ends up in logs of proxies; a token must not."""
    requests = []

    async def handler(connection: ServerConnection) -> None:
        requests.append(connection.request)
        await connection.send(json.dumps(notification(1)))
        await connection.wait_closed()

    async with service(handler) as url:
        await console.run("tail", "--url", f"{url}?token={TOKEN}&a=b", "--count", "1")
    (request,) = requests
    assert request is not None
    assert request.path == "/ws?a=b"
    assert request.headers["Sec-WebSocket-Protocol"] == f"huleedu.notify.v1, bearer.{TOKEN}"


async def test_what_could_steer_the_terminal_is_escaped(console: Console) -> None:
    """A notification can't recolour, retitle or overwrite what the user sees."""
    nasty = notification(1, event="e\x1b[31m\u202e", data={"a\x9b": "\x07\n\ud800"})

    async def handler(connection: ServerConnection) -> None:
        await connection.send(json.dumps(nasty))
        await connection.wait_closed()

    async with service(handler) as url:
        result = await console.run("tail", "--url", url, "--token", TOKEN, "--count", "1")
    (line,) = result.out.split("\n")[:-1]
    assert line.isprintable()


async def test_a_terminal_shows_colours_unless_the_user_wants_none(console: Console) -> None:
    """NO_COLOR counts; a pipe never gets any."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send(json.dumps(notification(1)))
        await connection.wait_closed()

    async with service(handler) as url:
        arguments = ("tail", "--url", url, "--token", TOKEN, "--count", "1")
        coloured = await console.on_terminal(*arguments)
        plain = await console.on_terminal(*arguments, NO_COLOR="1")
        dumb = await console.on_terminal(*arguments, TERM="dumb")
        piped = await console.run(*arguments)
    assert "\x1b[36m" in coloured
    assert "event_1" in coloured
    assert "\x1b" not in plain + dumb + piped.out


async def test_it_comes_back(console: Console) -> None:
    """A broken connection is not the end."""
    attempts = []

    async def handler(connection: ServerConnection) -> None:
        attempts.append(connection)
        await connection.send(WELCOME)
        if len(attempts) == 1:
            await connection.send(json.dumps(notification(1)))
            connection.transport.abort()
        else:
            await connection.send(json.dumps(notification(2)))
            await connection.wait_closed()

    async with (
        service(handler) as url,
        console.start("tail", "--url", url, "--token", TOKEN, "--count", "2") as tail,
    ):
        assert "event_1" in await tail.line()
        assert "reconnecting in" in await tail.error_line("connection lost (1006")
        await tail.error_line("connected again")
        assert "event_2" in await tail.line()
        assert (await tail.ended()).status == 0
    assert len(attempts) == 2


async def test_it_asks_for_what_follows_the_last_one_printed(console: Console) -> None:
    """Other parameters of the URL stay; what it has printed already is not printed again."""
    paths = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        paths.append(connection.request.path)
        if len(paths) == 1:
            await connection.send(welcome(cursor="4-1"))
            await connection.send(json.dumps(notification(5, id="5-2 &ü")))
            await connection.send(json.dumps(notification(0)))
            connection.transport.abort()
        else:
            await connection.send(welcome(cursor="6-3", resumed=True))
            replayed = [notification(5, id="5-2 &ü"), notification(6, id="6-3")]
            await connection.send(json.dumps(replayed))
            await connection.wait_closed()

    async with (
        service(handler) as url,
        console.start(
            *("tail", "--url", f"{url}?a=b&cursor=1-1", "--token", TOKEN),
            *("--count", "3", "--json"),
        ) as tail,
    ):
        await tail.error_line("connection lost")
        await tail.error_line("connected again")
        await tail.error_line("resumed: no durable notification is missing")
        result = await tail.ended()
    assert [json.loads(line)["event"] for line in result.out.splitlines()] == [
        "event_5",
        "event_0",
        "event_6",
    ]
    assert paths == ["/ws?a=b&cursor=1-1", "/ws?a=b&cursor=5-2+%26%C3%BC"]


async def test_what_can_not_be_resumed_is_told(console: Console) -> None:
    """On stderr in words, and to a script as the frame."""
    lost = json.dumps({"type": "resync", "reason": "history_lost", "cursor": None})
    paths = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        paths.append(connection.request.path)
        if len(paths) % 2:
            await connection.send(welcome(cursor=None, resumed=False))
            await connection.send(lost)
            await connection.send(json.dumps(notification(1, id="1-9")))
            connection.transport.abort()
        else:
            await connection.send(welcome(cursor="2-9", resumed=True))
            await connection.send(json.dumps(notification(2, id="2-9")))
            await connection.wait_closed()

    told = "notifications may have been missed: Redis has lost what it kept (history_lost)"
    async with service(handler) as url:
        arguments = ("tail", "--url", url, "--token", TOKEN, "--count", "2", "--since", "7-7")
        for_people = await console.run(*arguments)
        for_scripts = await console.run(*arguments, "--json")
    assert told in for_people.error_lines
    assert told in for_scripts.error_lines
    assert [line.split()[1] for line in for_people.out.splitlines()] == ["event_1", "event_2"]
    assert for_scripts.out.splitlines()[0] == lost
    assert paths == ["/ws?cursor=7-7", "/ws?cursor=1-9"] * 2


async def test_the_first_ones_can_be_missed_too(console: Console) -> None:
    """Where there was none to resume from, and there is one now, the user is told."""
    attempts = []

    async def handler(connection: ServerConnection) -> None:
        attempts.append(connection)
        if len(attempts) == 1:
            await connection.send(welcome(cursor=None))
            connection.transport.abort()
        else:
            await connection.send(welcome(cursor="1-9"))
            await connection.send(json.dumps(notification(2, id="2-9")))
            await connection.wait_closed()

    async with service(handler) as url:
        result = await console.run("tail", "--url", url, "--token", TOKEN, "--count", "1")
    assert "notifications may have been missed: the first ones" in result.err


@pytest.mark.parametrize(("is_admitted", "status"), [(True, 0), (False, 1)])
async def test_an_expired_token_is_replaced(
    console: Console, *, is_admitted: bool, status: int
) -> None:
    """Where tail makes its tokens itself; not where a fresh one is refused at once."""
    attempts = []

    async def handler(connection: ServerConnection) -> None:
        attempts.append(connection)
        if len(attempts) == 1:
            if is_admitted:
                await connection.send(welcome(cursor=None))
            reason = {"error_code": "AUTHENTICATION_ERROR", "message": "Token has expired"}
            await connection.close(1008, json.dumps(reason))
        else:
            await connection.send(json.dumps(notification(1)))
            await connection.wait_closed()

    async with service(handler) as url:
        result = await console.run(
            "tail", "--url", url, "--user", "u", "--count", "1", JWT_SECRET_KEY="k" * 40
        )
    assert result.status == status
    assert len(attempts) == 1 + is_admitted


async def test_a_service_that_is_away_is_waited_for(console: Console) -> None:
    """Once it has been connected, a refused connection is no reason to give up."""

    async def first(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.recv()

    async def second(connection: ServerConnection) -> None:
        await connection.send(json.dumps(notification(1)))
        await connection.wait_closed()

    async with contextlib.AsyncExitStack() as first_server:
        url = await first_server.enter_async_context(service(first))
        async with console.start("tail", "--url", url, "--token", TOKEN, "--count", "1") as tail:
            await tail.error_line("connected")
            await first_server.aclose()
            await tail.error_line("connection lost (1001")
            await tail.error_line("reconnecting")
            async with serve(second, "127.0.0.1", urlsplit(url).port, subprotocols=[DIALECT]):
                assert "event_1" in await tail.line()


@pytest.mark.parametrize("code", [1012, 1013])
async def test_the_service_says_when_to_come_back(console: Console, code: int) -> None:
    """The delay in the close reason is obeyed instead of one of our own."""
    attempts = []

    async def handler(connection: ServerConnection) -> None:
        attempts.append(connection)
        if len(attempts) == 1:
            reason = {"error_code": "SERVICE_UNAVAILABLE", "retry_after_ms": 1700}
            await connection.close(code, json.dumps(reason))
        else:
            await connection.send(json.dumps(notification(1)))
            await connection.wait_closed()

    async with (
        service(handler) as url,
        console.start("tail", "--url", url, "--token", TOKEN, "--count", "1") as tail,
    ):
        line = await tail.error_line("not accepted")
        assert line == f"not accepted ({code} SERVICE_UNAVAILABLE): reconnecting in 1.7 s"
        assert "event_1" in await tail.line()


@pytest.mark.parametrize("code", [1003, 1008, 1009, 4000])
async def test_a_refusal_is_one_line_and_the_end(console: Console, code: int) -> None:
    """It has what the service said, and the status is 1."""

    async def handler(connection: ServerConnection) -> None:
        reason = {"error_code": "QUOTA_EXCEEDED", "message": "Too\nmany"}
        await connection.close(code, json.dumps(reason))

    async with service(handler) as url:
        result = await console.run("tail", "--url", url, "--token", TOKEN)
    assert (result.status, result.out) == (1, "")
    (line,) = result.error_lines
    assert line.startswith(f"Error: the service refused: {code} QUOTA_EXCEEDED, Too\\nmany: ")


async def test_a_bad_token_is_told_with_what_to_do(console: Console, dev: Dev) -> None:
    """The real service's refusal leads to the command that makes a better token."""
    result = await console.run("tail", "--port", str(dev.port), "--token", TOKEN)
    assert result.status == 1
    (line,) = result.error_lines
    assert "1008 AUTHENTICATION_ERROR" in line
    assert "websocket-service token" in line
    assert TOKEN not in line


async def test_a_token_of_another_secret_is_told_as_that(console: Console, dev: Dev) -> None:
    """The whole message is shown, and which variable to look at."""
    minted = await console.run("token", "--user", "u", JWT_SECRET_KEY="other" * 8)
    result = await console.run("tail", "--port", str(dev.port), "--token", minted.out.strip())
    (line,) = result.error_lines
    assert "AUTHENTICATION_ERROR, Token signature verification failed: " in line
    assert "check that JWT_SECRET_KEY is the service's" in line


@pytest.mark.usefixtures("dev")
async def test_a_token_that_ends_is_told_as_that(console: Console) -> None:
    """On a live connection too; the secret is not to blame."""
    minted = await console.run("token", "--user", "u", "--expires-in", "2s")
    result = await console.run("tail", "--token", minted.out.strip())
    assert result.status == 1
    assert "AUTHENTICATION_ERROR, Token has expired: " in result.error_lines[-1]
    assert "JWT_SECRET_KEY" not in result.err


async def test_the_message_is_that_of_the_error_frame(console: Console) -> None:
    """A close frame has room for a part of it only."""
    error = {"code": "AUTHORIZATION_ERROR", "message": "Not allowed here", "details": {}}

    async def handler(connection: ServerConnection) -> None:
        await connection.send(json.dumps({"type": "error", "error": error}))
        reason = {"error_code": "AUTHORIZATION_ERROR", "message": "Not all"}
        await connection.close(1008, json.dumps(reason))

    async with service(handler) as url:
        result = await console.run("tail", "--url", url, "--token", TOKEN)
    (line,) = result.error_lines
    assert "1008 AUTHORIZATION_ERROR, Not allowed here: " in line


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
async def test_a_restarted_dev_is_found_again(console: Console, ending: signal.Signals) -> None:
    """It has another secret and another port then; while there is none, tail waits."""
    async with contextlib.AsyncExitStack() as first:
        dev = await first.enter_async_context(console.start("dev", "--port", "0", "--json"))
        old = json.loads(await dev.line())
        async with console.start("tail", "--count", "1") as tail:
            await tail.error_line(f"connected to ws://127.0.0.1:{old['port']}/ws")
            dev.signal(ending)
            await dev.ended()
            await tail.error_line("no running `websocket-service dev` found: looking again in")
            async with console.start("dev", "--port", "0", "--json") as again:
                new = json.loads(await again.line())
                await tail.error_line(f"connected again to ws://127.0.0.1:{new['port']}/ws")
                await console.run("notify", "--user", "teacher-1", "--event", "e", "--data", "{}")
                assert "  e  {}" in await tail.line()
                assert (await tail.ended()).status == 0


async def test_another_dev_does_not_distract_it(console: Console, dev: Dev) -> None:
    """The one on the same port is the same, though a newer one runs."""
    async with console.start("dev", "--port", "0", "--json") as second:
        port = json.loads(await second.line())["port"]
        async with console.start("tail", "--port", str(dev.port)) as tail:
            await tail.error_line(f"connected to ws://127.0.0.1:{dev.port}/ws")
            dev.process.interrupt()
            await dev.process.ended()
            await tail.error_line("no running `websocket-service dev` found")
            async with console.start("dev", "--port", str(dev.port), "--json"):
                await tail.error_line(f"connected again to ws://127.0.0.1:{dev.port}/ws")
    assert port != dev.port


async def test_a_normal_end_is_no_failure(console: Console) -> None:
    """When the service says good-bye, there is nothing to reconnect for."""

    async def handler(connection: ServerConnection) -> None:
        await connection.close()

    async with service(handler) as url:
        result = await console.run("tail", "--url", url, "--token", TOKEN)
    assert (result.status, result.err) == (0, "the service has closed the connection\n")


async def test_a_server_without_the_dialect_is_understood(console: Console) -> None:
    """The plain dialect's payloads are shown as notifications, whatever is in them."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send('{"event": "plain", "data": {"a": 1}}')
        await connection.send("no JSON")
        await connection.send('{"type": "resync", "event": "typed", "data": {}}')
        await connection.wait_closed()

    async with serve(handler, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        url = f"ws://127.0.0.1:{port}/"
        result = await console.run("tail", "--url", url, "--token", TOKEN, "--count", "3")
    first, second, third = result.out.splitlines()
    assert first.endswith('  plain  {"a": 1}')
    assert second.endswith('  (no event)  "no JSON"')
    assert third.endswith("  typed  {}")


async def test_a_server_that_does_not_resume_is_told_as_that(console: Console) -> None:
    """Durable notifications have ids in the plain dialect too, but nothing goes on from them."""
    attempts = []

    async def handler(connection: ServerConnection) -> None:
        attempts.append(connection)
        payload = {"id": f"{len(attempts)}-1", "event": f"event_{len(attempts)}", "data": {}}
        await connection.send(json.dumps(payload))
        if len(attempts) == 1:
            connection.transport.abort()
        else:
            await connection.wait_closed()

    async with serve(handler, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        result = await console.run("tail", "--url", url, "--token", TOKEN, "--count", "2")
    assert [line.split()[1] for line in result.out.splitlines()] == ["event_1", "event_2"]
    assert result.error_lines[-1] == (
        "notifications may have been missed: the service does not resume"
    )


async def test_a_server_without_the_dialect_can_refuse(console: Console) -> None:
    """An open connection is no welcome: the next token would be refused as well."""

    async def handler(connection: ServerConnection) -> None:
        await connection.close(1008, json.dumps({"error_code": "AUTHENTICATION_ERROR"}))

    async with serve(handler, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        result = await console.run("tail", "--url", url, "--user", "u", JWT_SECRET_KEY="k" * 40)
    assert result.status == 1
    assert result.error_lines[-1].startswith("Error: the service refused: 1008")


async def test_a_reader_that_leaves_ends_it_at_once(console: Console, dev: Dev) -> None:
    """`tail | head` does not linger until the next notification, and is quiet about it."""
    async with console.start("tail", "--port", str(dev.port)) as tail:
        await tail.error_line("connected")
        tail.close_output()
        result = await tail.ended()
    assert (result.status, result.err) == (0, "")


async def test_nothing_there_is_one_line(console: Console) -> None:
    """A first attempt that fails says how to start the service."""
    result = await console.run("tail", "--url", "ws://127.0.0.1:1/ws", "--token", TOKEN)
    assert result.status == 1
    (line,) = result.error_lines
    assert line.startswith("Error: can't connect to ws://127.0.0.1:1/ws (")
    assert "websocket-service dev" in line


async def test_another_http_server_is_one_line(console: Console, dev: Dev) -> None:
    """A URL that leads to the wrong place is not tried again."""
    for path in ("healthz", "nowhere"):
        result = await console.run(
            "tail", "--url", f"ws://127.0.0.1:{dev.port}/{path}", "--token", TOKEN
        )
        assert result.status == 1
        (line,) = result.error_lines
        assert "the path is /ws" in line


async def test_tls_where_there_is_none_is_one_line(console: Console, dev: Dev) -> None:
    """It says which scheme to try."""
    result = await console.run("tail", "--url", f"wss://127.0.0.1:{dev.port}/ws", "--token", TOKEN)
    assert result.status == 1
    (line,) = result.error_lines
    assert line.endswith("no TLS there: try ws://")


async def test_an_expiring_token_is_renewed(console: Console) -> None:
    """A tail that can make tokens keeps its connection when the one it has is about to expire."""
    answers: list[dict[str, str]] = []

    async def renewing(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.send('{"type":"token_expiring","expires_in_ms":1000}')
        answers.append(json.loads(await connection.recv()))
        await connection.send(
            '{"type":"token_refreshed","token_expires_at":"2030-01-01T00:00:00Z"}'
        )
        await connection.send(json.dumps(notification(1)))
        await connection.wait_closed()

    async with (
        service(renewing) as url,
        console.start(
            "tail", "--url", url, "--user", "u", "--count", "1", JWT_SECRET_KEY="k" * 40
        ) as tail,
    ):
        assert "event_1" in await tail.line()
        result = await tail.ended()
    assert result.status == 0
    ((answer),) = answers
    assert answer.keys() == {"type", "token"}
    assert answer["type"] == "authenticate"
    assert answer["token"].count(".") == 2


async def test_a_token_that_was_given_is_not_renewed(console: Console) -> None:
    """A tail that was given its token has no other one to send."""

    async def expiring(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.send('{"type":"token_expiring","expires_in_ms":1000}')
        await connection.send(json.dumps(notification(1)))
        with pytest.raises(ConnectionClosed):
            await connection.recv()

    async with (
        service(expiring) as url,
        console.start("tail", "--token", TOKEN, "--url", url, "--count", "1") as tail,
    ):
        assert "event_1" in await tail.line()
        assert (await tail.ended()).status == 0
