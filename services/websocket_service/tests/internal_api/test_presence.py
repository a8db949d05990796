"""Presence, from leases."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from huleedu_service_libs.connection_leases import Lease
from services.websocket_service.connection_ids import new_connection_id
from services.websocket_service.internal_api.presence import presence_of, presence_page

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Leases:
    """By user; users in `gone` have left since they were listed."""

    def __init__(self, by_user: dict[str, list[Lease]], *gone: str) -> None:
        self._by_user = by_user
        self._gone = gone

    async def of_user(self, user_id: str) -> Sequence[Lease]:
        return [] if user_id in self._gone else self._by_user.get(user_id, [])

    async def users(self) -> Sequence[str]:
        return sorted(self._by_user)


def lease(opened_at: datetime = NOON) -> Lease:
    return Lease(new_connection_id(lambda: opened_at), NOON + timedelta(hours=1))


async def test_since_when() -> None:
    """A user has been online since the oldest of the connections that are open."""
    leases = Leases({"a": [lease(NOON + timedelta(minutes=n)) for n in (3, 1, 2)]})
    presence = await presence_of(leases, "a")
    assert presence.online
    assert presence.connections == 3
    assert presence.since == NOON + timedelta(minutes=1)


async def test_of_nobody() -> None:
    """Without a connection nobody is online."""
    presence = await presence_of(Leases({}), "a")
    assert presence.model_dump() == {
        "user_id": "a",
        "online": False,
        "connections": 0,
        "since": None,
    }


async def test_foreign_connection_ids() -> None:
    """A lease with an id that is none of ours counts, and says nothing of when it began."""
    foreign = Lease("somebody-else", NOON)
    assert (await presence_of(Leases({"a": [foreign]}), "a")).since is None
    mixed = await presence_of(Leases({"a": [foreign, lease()]}), "a")
    assert (mixed.connections, mixed.since) == (2, NOON)


async def test_pages() -> None:
    """Pages follow one another in the order of the ids, and the last one says so."""
    leases = Leases({user: [lease()] for user in "dbeca"})
    seen: list[list[str]] = []
    after = None
    while True:
        page = await presence_page(leases, limit=2, after=after)
        seen.append([one.user_id for one in page.users])
        after = page.next
        if after is None:
            break
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_full_last_page() -> None:
    """A page that has the rest says that nothing follows."""
    page = await presence_page(Leases({user: [lease()] for user in "ab"}), limit=2, after=None)
    assert page.next is None


async def test_who_has_just_left() -> None:
    """Who leaves while a page is made is not on it, and the pages go on behind them."""
    leases = Leases({user: [lease()] for user in "abc"}, "b")
    page = await presence_page(leases, limit=2, after=None)
    assert [one.user_id for one in page.users] == ["a"]
    assert page.next == "b"
