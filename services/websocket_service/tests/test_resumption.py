"""What a client's cursor comes to: proven, or told why not."""

import copy

import pytest

from huleedu_service_libs.history_pages import Loss
from huleedu_service_libs.notification_ids import is_origin
from services.websocket_service.frames import ResyncReason
from services.websocket_service.protocols import BackplaneUnavailableError
from services.websocket_service.resumption import open_history
from services.websocket_service.tests.fakes import MemoryBackplane

TRIMMED = ResyncReason.HISTORY_TRIMMED
LOST = ResyncReason.HISTORY_LOST
UNKNOWN = ResyncReason.CURSOR_UNKNOWN


class Past:
    """A user for whom six notifications were published, and what became of them."""

    def __init__(self) -> None:
        self.backplane = MemoryBackplane()
        self.ids = [self.backplane.notify("a", n=n) for n in range(6)]
        self.history = self.backplane.histories["a"]

    async def why_not(self, cursor: str) -> ResyncReason | None:
        """Why the cursor can't be resumed; None where it can."""
        opening = await open_history(self.backplane, "a", cursor)
        newest = await self.backplane.newest("a")
        assert opening.newest == newest
        assert opening.resumed is (opening.resync is None)
        assert (opening.missed is None) is (opening.resync is not None)
        # From here on continuity is kept.
        assert opening.position == (cursor if opening.resumed else newest)
        return opening.resync


@pytest.mark.parametrize("published", [0, 3])
async def test_without_a_cursor(published: int) -> None:
    """Who does not say where it was is told of nothing but what comes from now on."""
    backplane = MemoryBackplane()
    ids = [backplane.notify("a", n=n) for n in range(published)]
    opening = await open_history(backplane, "a", None)
    assert opening.position == opening.newest == await backplane.newest("a")
    assert opening.resumed is None
    assert opening.resync is None
    assert opening.cursor == (ids[-1] if ids else None)


async def test_every_known_id_is_resumed() -> None:
    """Whichever notification a client has seen last, what followed it begins with the next."""
    past = Past()
    for seen, cursor in enumerate(past.ids, 1):
        opening = await open_history(past.backplane, "a", cursor)
        assert opening.missed is not None
        missed = [entry.id for entry in opening.missed.entries]
        assert missed == past.ids[seen : seen + past.backplane.page_entries]
        assert opening.missed.complete is (seen + len(missed) == len(past.ids))
        assert await past.why_not(cursor) is None


@pytest.mark.parametrize(
    "cursor",
    [
        " ",
        "5",
        "null",
        "undefined",
        "[object Object]",
        "5-",
        "-7",
        "05-7",
        "5-07",
        "5-7 ",
        " 5-7",
        "5-7\n",
        "5-7\x00",
        "5-7-7",
        "+5-7",
        "5.0-7",
        "5-0x7",
        "\u0665-\u0667",
        "5\u20137",
        "1000000000000000-1",
        "5-99999999999999999999",
        "$",
        "+",
        "*",
        "x" * 100_000,
        "9" * 100_000,
        "{ws:a}",
        "' OR 1=1",
    ],
    ids=lambda cursor: repr(cursor[:16]),
)
async def test_what_is_no_id_is_unknown(cursor: str) -> None:
    """A cursor that can't be an id is as good as one that nobody knows."""
    assert await Past().why_not(cursor) is UNKNOWN


async def test_an_id_of_somebody_else_is_unknown() -> None:
    """A cursor that is no id of this user's says nothing of what the user has missed."""
    past = Past()
    other = [past.backplane.notify("b", n=n) for n in range(6)]
    for cursor in other:
        assert await past.why_not(cursor) is UNKNOWN


async def test_trimmed() -> None:
    """A cursor that is older than what is kept is told so."""
    past = Past()
    del past.history.entries[:3]
    reasons = [await past.why_not(cursor) for cursor in past.ids]
    assert reasons == [TRIMMED, TRIMMED, None, None, None, None]


async def test_expired() -> None:
    """When all has expired, the newest id is still known, and all others are too old."""
    past = Past()
    past.history.entries.clear()
    reasons = [await past.why_not(cursor) for cursor in past.ids]
    assert reasons == [TRIMMED] * 5 + [None]


async def test_lost() -> None:
    """When Redis has lost everything no cursor can be resumed, and the next position is an origin.

    So it stays once new ones are published, also where their offsets have been there before.
    """
    past = Past()
    del past.backplane.histories["a"]
    assert await past.why_not(past.ids[3]) is LOST
    assert is_origin(await past.backplane.newest("a"))
    for _ in range(2):
        past.backplane.notify("a")
    reasons = [await past.why_not(cursor) for cursor in past.ids]
    # Nobody can tell the first two from ids that were never there.
    assert reasons == [UNKNOWN] * 2 + [LOST] * 4


async def test_rolled_back() -> None:
    """When Redis has gone back to an earlier state, what was seen since then is unknown."""
    past = Past()
    earlier = copy.deepcopy(past.history)
    seen = [past.backplane.notify("a") for _ in range(3)]
    past.backplane.histories["a"] = earlier
    assert [await past.why_not(cursor) for cursor in past.ids] == [None] * 6
    assert [await past.why_not(cursor) for cursor in seen] == [LOST] * 3
    past.backplane.notify("a")
    assert [await past.why_not(cursor) for cursor in past.ids] == [None] * 6
    assert [await past.why_not(cursor) for cursor in seen] == [UNKNOWN, LOST, LOST]


async def test_an_origin_is_a_position() -> None:
    """A position from before the first notification is resumed from the very first one."""
    backplane = MemoryBackplane()
    origin = await backplane.newest("a")
    first = backplane.notify("a")
    opening = await open_history(backplane, "a", origin)
    assert opening.missed is not None
    assert [entry.id for entry in opening.missed.entries] == [first]
    assert opening.cursor == first


@pytest.mark.parametrize("cursor", [None, "", "5-7", "malformed"])
async def test_unreadable(cursor: str | None) -> None:
    """While the history can't be read nobody is told anything about it."""
    backplane = MemoryBackplane()
    backplane.readable = False
    with pytest.raises(BackplaneUnavailableError):
        await open_history(backplane, "a", cursor)


def test_reasons_are_those_of_the_library() -> None:
    """What a reader of the history finds out can be told to the client as it is."""
    assert {loss.value for loss in Loss} < {reason.value for reason in ResyncReason}
