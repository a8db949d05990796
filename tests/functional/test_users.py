"""Whatever a user is called, its notifications reach it and nobody else."""

import asyncio
import json

import pytest
from redis.asyncio import Redis

from tests.functional.closes import closed
from tests.functional.tokens import WAYS
from tests.service_process import ServiceProcess, receive_all, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"

LOOK_ALIKES = [
    "a",
    "A",
    "a ",
    " a",
    "a\n",
    "a\t",
    "a\x00",
    "\x00",
    "a:b",
    "a:",
    ":a",
    ":",
    "ws:a",
    "ws",
    "b",
    "a*",
    "*",
    "a?",
    "?",
    "[ab]",
    "[a-z]*",
    "\\a",
    "a\\*",
    "{a}",
    "}a{",
    "}",
    "a b",
    "a\nb",
    "a\r\nb",
    "a,b",
    'a"b',
    "a%20b",
    "a+b",
    "a/b",
    "../a",
    "á",
    "a\u0301",
    "а",  # noqa: RUF001 - the Cyrillic letter
    "a\u200b",
    "a\ufeff",
    "a\u202e",
    "👩‍🏫",
    "👩",
    "\U0010ffff",
    "null",
    "None",
    "0",
    "a" * 255,
    "a" * 256,
]
assert len(set(LOOK_ALIKES)) == len(LOOK_ALIKES)


async def test_look_alike_users_get_their_own_notifications_alone(
    service: ServiceProcess, redis: Redis
) -> None:
    """Users whose ids look, or match, alike: each tab sees its own two notifications alone."""
    expected = [
        [json.dumps([round_, user]) for round_ in ("first", "last")] for user in LOOK_ALIKES
    ]
    tabs = [await service.connect(user) for user in LOOK_ALIKES]
    try:
        for number in (0, 1):
            for user, texts in zip(LOOK_ALIKES, expected, strict=True):
                assert await redis.publish(f"ws:{user}", texts[number]) == 1, user
        # In order of publication, so a stranger's would have come before the last of one's own.
        assert [await receive_all(tab, 2) for tab in tabs] == expected
    finally:
        await asyncio.gather(*(tab.close() for tab in tabs))


async def test_the_welcome_names_the_user_exactly(service: ServiceProcess) -> None:
    """A v1 client reads back its id to the character."""
    for user in LOOK_ALIKES:
        async with service.connect(user, subprotocols=[V1]) as tab:
            assert json.loads(await tab.recv())["user_id"] == user


@pytest.mark.parametrize("way", ["query", "header"])
async def test_a_user_id_of_10_000_characters(
    service: ServiceProcess, redis: Redis, way: str
) -> None:
    """Such a user gets its notifications, and one that differs in the last character does not."""
    one, other = "x" * 9_999 + "1", "x" * 9_999 + "2"
    connect = WAYS[way]
    async with connect(service, token(one)) as tab, connect(service, token(other)) as other_tab:
        for user in (one, other):
            assert await redis.publish(f"ws:{user}", user[-1]) == 1
        assert await tab.recv() == "1"
        assert await other_tab.recv() == "2"


@pytest.mark.parametrize("user", ["", " ", "\n", "\t \u3000"])
async def test_a_user_without_a_name_is_refused(service: ServiceProcess, user: str) -> None:
    """Nothing but blanks is nobody."""
    async with service.connect(user) as tab:
        close = await closed(tab)
    assert (close.code, close.reason["error_code"]) == (1008, "AUTHENTICATION_ERROR")


async def test_the_limit_counts_each_user_alone(service: ServiceProcess) -> None:
    """Five tabs of one user leave room for five of others that look alike."""
    tabs = [await service.connect(user) for user in ("a", "a ", "A") for _ in range(5)]
    for tab in tabs:
        await (await tab.ping())
    await asyncio.gather(*(tab.close() for tab in tabs))
