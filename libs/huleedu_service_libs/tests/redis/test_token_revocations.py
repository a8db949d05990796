"""Revocations in Redis, of every kind and whatever becomes of it."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import exceptions

from common_core.error_enums import ErrorCode
from common_core.timestamps import utc_now
from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.bounded_ids import MAX_ID_BYTES
from huleedu_service_libs.connection_control import ConnectionControl, Disconnect, Revoked, parse
from huleedu_service_libs.epoch_microseconds import epoch_us
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.redis_channels import (
    control_channel,
    hash_slot,
    revocations_key,
    user_channel,
)
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.revocation_list import KEPT_PAST_EXPIRY, Revocation, RevocationList
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.token_revocations import (
    MAX_CLOCK_DIFFERENCE,
    MAX_EXPIRY,
    TokenRevocations,
)

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from libs.huleedu_service_libs.tests.redis.conftest import Next, StartServer

DAY = timedelta(days=1)
RETENTION_S = DAY.total_seconds()
KEY = revocations_key()
PREFIXES = ["ws", "", "a:b", "{", "}", "{}", "}{", "{a}", "a}b", "%", "%7B", "huleedu-control-{"]
PREFIX = st.text("{}%:a", max_size=6) | st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def revocations(client: RedisClient) -> TokenRevocations:
    return TokenRevocations(client, retention_s=RETENTION_S)


def from_now(delta: timedelta) -> datetime:
    return utc_now() + delta


def claims(subject: str, token_id: str | None, issued_at: datetime | None) -> JWTClaims:
    return JWTClaims(
        subject=subject,
        token_id=token_id,
        issued_at=issued_at,
        expires_at=from_now(DAY),
        raw=MappingProxyType({}),
    )


async def test_what_is_revoked_is_kept(revocations: TokenRevocations, client: RedisClient) -> None:
    """Any service can see what another one has revoked, and until when that holds."""
    before = utc_now()
    tokens = [
        await revocations.revoke_token("t-1"),
        await revocations.revoke_token("t-2", expires_at=before + timedelta(hours=1)),
    ]
    users = [
        await revocations.revoke_user("u-1"),
        await revocations.revoke_user("u-2", issued_before=before - timedelta(hours=1)),
    ]
    after = utc_now()
    assert before + DAY <= tokens[0].expires_at <= after + DAY
    assert tokens[1].expires_at == before + timedelta(hours=1)
    assert users[0].issued_before is not None
    assert before <= users[0].issued_before <= after
    assert users[0].expires_at == users[0].issued_before + DAY
    assert users[1].issued_before == before - timedelta(hours=1)
    elsewhere = TokenRevocations(client, retention_s=1)
    assert {*await elsewhere.all()} == {*tokens, *users}


@pytest.mark.parametrize(
    "passed", [timedelta(microseconds=1), timedelta(minutes=5), DAY, 400 * DAY]
)
async def test_expiry_that_has_passed(revocations: TokenRevocations, passed: timedelta) -> None:
    """Whoever revokes with a clock or a unit that is wrong still has the token refused."""
    before = utc_now()
    made = await revocations.revoke_token("t", expires_at=before - passed)
    assert before + DAY <= made.expires_at <= utc_now() + DAY
    assert await revocations.all() == [made]


@pytest.mark.parametrize("ago", [timedelta(microseconds=1), DAY, 2 * DAY, 400 * DAY])
async def test_moment_long_past(revocations: TokenRevocations, ago: timedelta) -> None:
    """A user's revocation is kept for the retention from now, whatever moment it names."""
    before = utc_now()
    made = await revocations.revoke_user("u", issued_before=before - ago)
    assert made.issued_before == before - ago
    assert before + DAY <= made.expires_at <= utc_now() + 2 * DAY
    assert await revocations.all() == [made]


async def test_longest_retention(client: RedisClient) -> None:
    """The longest retention keeps what was revoked as of long ago."""
    revocations = TokenRevocations(client, retention_s=MAX_EXPIRY.total_seconds())
    made = await revocations.revoke_user("u", issued_before=datetime(1970, 1, 1, tzinfo=UTC))
    assert await revocations.all() == [made]


async def test_nothing_is_revoked(revocations: TokenRevocations) -> None:
    """Without a revocation there are none."""
    assert await revocations.all() == []


REFUSED_IDS = ["", "x" * (MAX_ID_BYTES + 1), "é" * (MAX_ID_BYTES // 2 + 1), "\ud800", None, 7, b"t"]
SOON = timedelta(minutes=1)


@pytest.mark.parametrize("id_", REFUSED_IDS, ids=lambda id_: repr(id_)[:12])
async def test_refused_ids(revocations: TokenRevocations, admin: Redis, id_: str) -> None:
    """What can't be an id is the caller's error, and is not repeated in it."""
    for field, call in (
        ("token_id", revocations.revoke_token(id_)),
        ("user_id", revocations.revoke_user(id_)),
    ):
        with pytest.raises(HuleEduError) as refused:
            await call
        assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
        assert refused.value.error_detail.details == {"field": field}
        assert "xxxx" not in str(refused.value)
    assert await admin.keys() == []


@pytest.mark.parametrize(
    ("field", "moment"),
    [
        ("expires_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - that is what is wrong with it
        ("expires_at", datetime(1969, 12, 31, tzinfo=UTC)),
        ("expires_at", datetime.min.replace(tzinfo=UTC)),
        ("expires_at", datetime.max.replace(tzinfo=UTC)),
        ("expires_at", utc_now() + MAX_EXPIRY + DAY),
        ("expires_at", 1_800_000_000),
        ("issued_before", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("issued_before", datetime.min.replace(tzinfo=UTC)),
        ("issued_before", datetime.max.replace(tzinfo=UTC)),
        ("issued_before", utc_now() + DAY),
        ("issued_before", "2026-01-01T00:00:00Z"),
    ],
)
async def test_refused_moments(
    revocations: TokenRevocations, admin: Redis, field: str, moment: datetime
) -> None:
    """A moment without a zone or far away is a mistake: it would lock a user out for years."""
    call = (
        revocations.revoke_token("t", expires_at=moment)
        if field == "expires_at"
        else revocations.revoke_user("u", issued_before=moment)
    )
    with pytest.raises(HuleEduError) as refused:
        await call
    assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
    assert refused.value.error_detail.details == {"field": field}
    assert await admin.keys() == []


async def test_moments_at_the_limits(revocations: TokenRevocations) -> None:
    """What lies just within the limits is taken; ids may hold any character."""
    await revocations.revoke_token("\x00" * MAX_ID_BYTES, expires_at=from_now(MAX_EXPIRY))
    await revocations.revoke_token("é" * 128, expires_at=datetime(1970, 1, 1, tzinfo=UTC))
    await revocations.revoke_user('{"', issued_before=from_now(MAX_CLOCK_DIFFERENCE))
    assert {(r.token_id, r.user_id) for r in await revocations.all()} == {
        ("\x00" * MAX_ID_BYTES, None),
        ("é" * 128, None),
        (None, '{"'),
    }


@pytest.mark.parametrize("retention_s", [0, -1, float("nan"), float("inf"), 1e12])
def test_refused_retention(retention_s: float) -> None:
    """A retention that would forget at once, or never, stops the start."""
    client = RedisClient(client_id="test")
    with pytest.raises(ValueError, match="retention_s must be"):
        TokenRevocations(client, retention_s=retention_s)


async def test_revoked_twice(revocations: TokenRevocations) -> None:
    """Revoking twice is harmless, and the later expiry stands."""
    late, early = from_now(2 * DAY), from_now(DAY)
    kept = await revocations.revoke_token("t", expires_at=late)
    assert await revocations.revoke_token("t", expires_at=early) != kept
    assert await revocations.all() == [kept]


async def test_newest_moment_of_a_user(revocations: TokenRevocations) -> None:
    """Of a user's revocations the newest takes the place of the older, whichever comes last."""
    await revocations.revoke_user("u", issued_before=from_now(-2 * SOON))
    newest = await revocations.revoke_user("u", issued_before=from_now(-SOON))
    await revocations.revoke_user("u", issued_before=from_now(-3 * SOON))
    assert await revocations.all() == [newest]


REVOKE = st.tuples(
    st.sampled_from(["token", "user"]), st.sampled_from("ab"), st.integers(-30, 30), st.booleans()
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(REVOKE, max_size=12))
async def test_kept_is_what_was_said(
    client: RedisClient, admin: Redis, steps: list[tuple[str, str, int, bool]]
) -> None:
    """Who reads the list later refuses the same tokens as who has heard every revocation."""
    await admin.flushall()
    now = utc_now()
    heard, read = RevocationList(), RevocationList()
    services = [TokenRevocations(client, retention_s=s) for s in (3600, 7200)]
    for kind, id_, minutes, second_service in steps:
        service = services[second_service]
        # Never on the moment itself: Redis forgets by the whole second.
        moment = now + timedelta(minutes=minutes, seconds=30)
        if kind == "token":
            heard.add(await service.revoke_token(id_, expires_at=moment))
        else:
            issued_before = now - timedelta(minutes=abs(minutes))
            heard.add(await service.revoke_user(id_, issued_before=issued_before))
    for revocation in await services[0].all():
        read.add(revocation)
    heard.forget(now)
    ages = [
        None,
        *(now + timedelta(minutes=m, microseconds=us) for m in range(-31, 2) for us in (0, 1)),
    ]
    for id_ in "ab":
        for issued_at in ages:
            token = claims(id_, None, issued_at)
            assert read.covers(token) == heard.covers(token)
        token = claims("nobody", id_, now)
        assert read.covers(token) == heard.covers(token)


async def test_list_shrinks_by_itself(revocations: TokenRevocations, admin: Redis) -> None:
    """What has expired goes with the next revocation, with time for clocks that differ."""
    expired = from_now(-KEPT_PAST_EXPIRY)
    # As if they had expired since.
    await admin.zadd(KEY, {f"{n}": epoch_us(expired - SOON) for n in range(2500)})
    await admin.zadd(KEY, {'{"token_id":"t-0"}': epoch_us(expired + SOON)})
    kept = [await revocations.revoke_token(f"t-{n}") for n in (1, 2, 3)]
    assert await admin.zcard(KEY) == 4
    just_expired = Revocation(token_id="t-0", expires_at=expired + SOON)
    assert {*await revocations.all()} == {*kept, just_expired}


async def test_list_ends_with_its_last(revocations: TokenRevocations, admin: Redis) -> None:
    """Redis forgets everything by itself once nothing of it is valid any more."""
    for expires_at in (from_now(2 * DAY), from_now(DAY)):
        await revocations.revoke_token(f"t-{expires_at}", expires_at=expires_at)
        ends_at = from_now(timedelta(milliseconds=await admin.pttl(KEY)))
        assert abs(ends_at - from_now(2 * DAY) - KEPT_PAST_EXPIRY) < SOON


async def test_thousands(revocations: TokenRevocations, client: RedisClient) -> None:
    """A long list is read to its end while others make it longer."""
    elsewhere = TokenRevocations(client, retention_s=RETENTION_S)
    made = await asyncio.gather(*(elsewhere.revoke_token(f"t-{n}") for n in range(2000)))
    more = asyncio.gather(*(elsewhere.revoke_token(f"more-{n}") for n in range(2000)))
    assert {*made} <= {*await revocations.all()}
    everything = {*made, *await more}
    assert {*await revocations.all()} == everything


FOREIGN = [
    b"",
    b"x",
    b"\xff",
    b"[]",
    b"{}",
    b"null",
    b'{"token_id":7}',
    b'{"token_id":""}',
    b'{"user_id":"u"}',
    b'{"user_id":"u","kept_us":"1"}',
    b'{"user_id":"u","kept_us":1e12}',
    b'{"user_id":"u","kept_us":1%b}' % (b"0" * 30),
    b'{"token_id":"%b"}' % (b"x" * (MAX_ID_BYTES + 1)),
]


async def test_foreign_entries(
    revocations: TokenRevocations, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """What others have put among the revocations is passed over and not repeated in the log."""
    kept = await revocations.revoke_token("t")
    later = epoch_us(from_now(DAY))
    await admin.zadd(KEY, dict.fromkeys(FOREIGN, later))
    await admin.zadd(KEY, {b'{"token_id":"a"}': "inf", b'{"token_id":"b"}': later + 0.5})
    await admin.zadd(KEY, {b'{"token_id":"c"}': 1e300})
    assert await revocations.all() == [kept]
    again = await revocations.revoke_token("t")
    assert await revocations.all() == [again]
    assert await admin.ttl(KEY) < 2 * RETENTION_S
    assert "are no revocations" in caplog.text
    assert "xxxx" not in caplog.text


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_announced_as_it_is_kept(client: RedisClient, hear: Next, prefix: str) -> None:
    """Who listens hears each revocation, also one that is made again."""
    revocations = TokenRevocations(client, channel_prefix=prefix, retention_s=RETENTION_S)
    control = ConnectionControl(client, channel_prefix=prefix)
    async with client.subscribe(control.channel) as said:
        made = [
            await revocations.revoke_token("t"),
            await revocations.revoke_token("t"),
            await revocations.revoke_user("u"),
        ]
        assert [parse(await hear(said)) for _ in made] == [Revoked(r) for r in made]
        await control.disconnect(user_id="u", reconnect=True)
        assert parse(await hear(said)) == Disconnect(user_id="u", reconnect=True)
        await control.disconnect(connection_id="c-1")
        assert parse(await hear(said)) == Disconnect(connection_id="c-1")
    assert len(await revocations.all()) == 2


async def test_disconnect_of_nobody(client: RedisClient) -> None:
    """A disconnect that names nobody, or somebody impossible, is the caller's error."""
    control = ConnectionControl(client)
    with pytest.raises(HuleEduError) as refused:
        await control.disconnect(reconnect=True)
    assert refused.value.error_code == ErrorCode.MISSING_REQUIRED_FIELD.value
    for field, call in (
        ("user_id", control.disconnect(user_id="")),
        ("connection_id", control.disconnect(user_id="u", connection_id="x" * (MAX_ID_BYTES + 1))),
    ):
        with pytest.raises(HuleEduError) as refused:
            await call
        assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
        assert refused.value.error_detail.details == {"field": field}


@given(prefix=PREFIX, other=PREFIX, user_id=st.text("{}%:a0-", min_size=1))
def test_names(prefix: str, other: str, user_id: str) -> None:
    """The list lies with its channel, which is no user's, and no two installations share them."""
    channel, key = control_channel(prefix), revocations_key(prefix)
    assert hash_slot(channel) == hash_slot(key)
    assert channel != user_channel(user_id, prefix)
    assert not channel.startswith(f"{prefix}:")
    if prefix != other:
        assert channel != control_channel(other)
        assert key != revocations_key(other)


async def test_on_a_cluster(redis_binary: Path, hear: Next) -> None:
    """On a Cluster too, a revocation is kept and heard, wherever the prefix puts it."""
    async with (
        RedisCluster(redis_binary) as cluster,
        RedisClient(client_id="listening", redis_url=cluster.url) as listening,
        RedisClient(client_id="revoking", redis_url=cluster.url) as revoking,
    ):
        for prefix in PREFIXES:
            revocations = TokenRevocations(revoking, channel_prefix=prefix, retention_s=RETENTION_S)
            async with listening.subscribe(control_channel(prefix)) as said:
                made = await revocations.revoke_user("u")
                assert parse(await hear(said)) == Revoked(made)
            elsewhere = TokenRevocations(listening, channel_prefix=prefix, retention_s=RETENTION_S)
            assert await elsewhere.all() == [made]


async def test_restart(start_server: StartServer) -> None:
    """Revocations survive a killed Redis as everything does that it writes to its disk."""
    async with (
        start_server(options={"appendonly": "yes", "appendfsync": "always"}) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        revocations = TokenRevocations(client, retention_s=RETENTION_S)
        made = await revocations.revoke_user("u")
        await server.kill()
        with pytest.raises(exceptions.ConnectionError):
            await revocations.revoke_user("u")
        await server.launch()
        assert await revocations.all() == [made]


async def test_hung_redis(start_server: StartServer) -> None:
    """While Redis hangs revoking fails in time, and can be repeated."""
    async with (
        start_server() as server,
        RedisClient(client_id="test", redis_url=server.url, timeout_s=0.3) as client,
    ):
        revocations = TokenRevocations(client, retention_s=RETENTION_S)
        await revocations.revoke_token("before")
        server.signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError):
            await revocations.revoke_token("t")
        with pytest.raises(exceptions.TimeoutError):
            await revocations.all()
        server.signal(signal.SIGCONT)

        async def revoked() -> bool:
            try:
                await revocations.revoke_token("t")
            except exceptions.TimeoutError:
                return False
            return True

        await until(revoked)
        assert {r.token_id for r in await revocations.all()} == {"before", "t"}


async def test_many_at_once(revocations: TokenRevocations) -> None:
    """However many revoke the same user at once, the newest moment of all stands."""
    now = utc_now()
    made: list[Revocation] = await asyncio.gather(
        *(
            revocations.revoke_user("u", issued_before=now - timedelta(seconds=n * 7 % 100))
            for n in range(100)
        )
    )
    (kept,) = await revocations.all()
    assert kept == max(made, key=lambda revocation: revocation.expires_at)


async def test_lost_and_restored(
    client: RedisClient, revocations: TokenRevocations, admin: Redis, hear: Next
) -> None:
    """What Redis has lost can be given back by who knows it, is told again, and nothing else is."""
    known = RevocationList()
    made = [await revocations.revoke_token(f"t-{n}") for n in range(150)]
    made += [await revocations.revoke_user(f"u-{n}") for n in range(50)]
    for revocation in made:
        known.add(revocation)
    await admin.flushall()
    newest = await revocations.revoke_user("u-7")
    await revocations.revoke_token("t-7", expires_at=made[7].expires_at)
    others = [r for r in made if r.user_id != "u-7" and r.token_id != "t-7"]
    async with client.subscribe(control_channel()) as said:
        assert await revocations.restore(known) == len(others)
        assert await revocations.restore(known) == 0
        heard = [parse(await hear(said)) for _ in others]
        last = await revocations.revoke_token("last")
        assert parse(await hear(said)) == Revoked(last)
    assert heard == [Revoked(r) for r in others]
    assert {*await revocations.all()} == {*others, newest, made[7], last}
