from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.tests.cli.console import DEADLINE_S

if TYPE_CHECKING:
    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.conftest import Dev
    from services.websocket_service.tests.cli.console import Console

OF_USER = ("history", "--user", "u")


async def published(
    server: RedisServer, *events: str, expires_in_s: float | None = None
) -> list[str]:
    """Their ids."""
    async with RedisClient(client_id="test", redis_url=server.url) as client:
        receipts = [
            await client.publish_notification(
                Notification(
                    user_id="u", event_type=event, data={"of": event}, expires_in_s=expires_in_s
                )
            )
            for event in events
        ]
    return [str(receipt.id) for receipt in receipts]


async def keep(server: RedisServer, *rests: bytes) -> None:
    """Entries whose text begins with their id, as the library's do, and goes on with `rests`."""
    async with Redis.from_url(server.url) as redis:
        for number, rest in enumerate(rests, start=1):
            id_ = b"%d-1" % number
            payload = b'{"id":"%b"%b' % (id_, rest)
            await redis.xadd(UserKeys.of(user_channel("u")).history, {"d": payload}, id=id_)


async def test_what_notify_publishes_is_kept(console: Console, dev: Dev) -> None:
    """A running `dev` is found; oldest first, each with its id, and a last line that counts."""
    ids = []
    for number in (1, 2):
        result = await console.run(
            *("notify", "--user", "pupil", "--event", f"event_{number}", "--json"),
            *("--data", f'{{"n": {number}}}'),
        )
        ids.append(json.loads(result.out)["id"])
    result = await console.run("history", "--user", "pupil", "--port", str(dev.port))
    assert (result.status, result.err) == (0, "")
    *lines, last = result.out.splitlines()
    for number, (id_, line) in enumerate(zip(ids, lines, strict=True), start=1):
        assert line.startswith(f"{id_} ")
        assert line.endswith(f'  event_{number}  {{"n": {number}}}')
    assert last == f"2 kept for pupil, the newest is {ids[-1]}"


async def test_nothing_kept_is_no_failure(console: Console, redis_server: RedisServer) -> None:
    """It says so; a script gets no line."""
    for_people = await console.run(*OF_USER, REDIS_URL=redis_server.url)
    for_scripts = await console.run(*OF_USER, "--json", REDIS_URL=redis_server.url)
    assert (for_people.status, for_people.out) == (0, "nothing is kept for u\n")
    assert (for_scripts.status, for_scripts.out, for_scripts.err) == (0, "", "")


async def test_a_limit_shows_the_newest(console: Console, redis_server: RedisServer) -> None:
    """The last line counts the others too."""
    ids = await published(redis_server, "first", "second", "third")
    result = await console.run(*OF_USER, "--limit", "2", REDIS_URL=redis_server.url)
    *lines, last = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ids[1:]
    assert last == f"2 of 3 kept for u, the newest is {ids[-1]}"


async def test_a_script_gets_one_object_a_line(console: Console, redis_server: RedisServer) -> None:
    """With the notification as it was published, and when it expires."""
    first, second = await published(redis_server, "first", "second")
    (third,) = await published(redis_server, "third", expires_in_s=3600)
    result = await console.run(*OF_USER, "--json", REDIS_URL=redis_server.url)
    kept = [json.loads(line) for line in result.out.splitlines()]
    assert [entry["id"] for entry in kept] == [first, second, third]
    assert kept[1]["notification"]["id"] == second
    assert kept[1]["notification"]["prev"] == first
    assert kept[1]["notification"]["data"] == {"of": "second"}
    assert kept[1]["expires_at"] is None
    assert kept[2]["expires_at"] > kept[2]["notification"]["timestamp"]
    assert [entry["expired"] for entry in kept] == [False] * 3


async def test_an_expired_one_is_marked(console: Console, redis_server: RedisServer) -> None:
    """It is still kept, but no client gets it any more."""
    await published(redis_server, "short", expires_in_s=0.001)
    await published(redis_server, "long", expires_in_s=3600)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            result = await console.run(*OF_USER, "--json", REDIS_URL=redis_server.url)
            short, long = (json.loads(line)["expired"] for line in result.out.splitlines())
            if short:
                break
    assert not long
    first, second, _ = (await console.run(*OF_USER, REDIS_URL=redis_server.url)).out.splitlines()
    assert '  short  [expired]  {"of": "short"}' in first
    assert "[expired]" not in second


async def test_what_is_no_json_is_shown_as_it_is(
    console: Console, redis_server: RedisServer
) -> None:
    """Whatever somebody has put there, it breaks neither the list nor the terminal."""
    # Around the depth from which on Python reads it, but does not write it any more; and beyond.
    depths = (*range(960, 1001), 10_000)
    nested = [b',"a":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1) for depth in depths]
    await keep(redis_server, b" no JSON", b"\xff\x1b[31m", *nested)
    for_people = await console.run(*OF_USER, REDIS_URL=redis_server.url)
    for_scripts = await console.run(*OF_USER, "--json", REDIS_URL=redis_server.url)
    for result in (for_people, for_scripts):
        assert (result.status, result.err) == (0, "")
        lines = result.out.split("\n")[:-1]
        assert all(line.isprintable() for line in lines)
        assert len(lines) == 2 + len(nested) + (result is for_people)
        assert " no JSON" in lines[0]
        assert "\\xff" in lines[1]
    assert json.loads(lines[0])["notification"] == {"data": '{"id":"1-1" no JSON'}


async def test_what_could_steer_the_terminal_is_escaped(
    console: Console, redis_server: RedisServer
) -> None:
    """An event's name can't recolour or overwrite what the user sees, nor can the user's."""
    await published(redis_server, "e\x1b[31m\u202e")
    shown = await console.run(*OF_USER, REDIS_URL=redis_server.url)
    empty = await console.run("history", "--user", "\x1b[31m", REDIS_URL=redis_server.url)
    assert all(line.isprintable() for line in (shown.out + empty.out).split("\n"))


async def test_another_day_is_shown_with_its_date(
    console: Console, redis_server: RedisServer
) -> None:
    """A time alone would be taken for today's; without a time there is none."""
    await keep(
        redis_server,
        b',"event":"old","data":{},"timestamp":"2026-01-01T12:00:00+00:00"}',
        b',"event":"timeless","data":{}}',
    )
    old, timeless, _ = (
        await console.run(*OF_USER, REDIS_URL=redis_server.url, TZ="UTC")
    ).out.splitlines()
    assert old.endswith("  2026-01-01 12:00:00.000  old  {}")
    assert timeless.endswith("  (no time)  timeless  {}")


async def test_a_terminal_shows_colours(console: Console, redis_server: RedisServer) -> None:
    """In the way of `tail`."""
    await published(redis_server, "e")
    coloured = await console.on_terminal(*OF_USER, REDIS_URL=redis_server.url)
    plain = await console.on_terminal(*OF_USER, REDIS_URL=redis_server.url, NO_COLOR="1")
    assert "\x1b[36m" in coloured
    assert "\x1b" not in plain


async def test_without_redis_it_says_what_to_do(console: Console) -> None:
    """One line each, for one that is away and for one that nobody named."""
    away = await console.run(*OF_USER, REDIS_URL="redis://127.0.0.1:1")
    unnamed = await console.run(*OF_USER)
    assert (away.status, unnamed.status) == (1, 1)
    assert len(away.error_lines) == len(unnamed.error_lines) == 1
    assert "start it, or correct REDIS_URL" in away.err
    assert "start one, or set REDIS_URL" in unnamed.err
