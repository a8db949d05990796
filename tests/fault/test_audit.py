"""The audit sees what it is there to see: each test here has a flaw made by hand, or none."""

import pytest

from tests.fault.audit import Figures, audit
from tests.fault.ledger import Ledger, TabHistory

USER = "teacher-1"


class Story:
    """A user with one tab; a notification with offset n has the id `n-1`, else `n-<branch>`."""

    def __init__(self, *, is_plain: bool = False) -> None:
        self.ledger = Ledger()
        self.tab: TabHistory = self.ledger.tab("tab", USER, is_plain=is_plain)

    def publish(self, *ids: str, receipt: bool = True) -> None:
        for id_ in ids:
            publication = self.ledger.begin(USER, f"key of {id_}")
            if receipt:
                self.ledger.receipt(publication, id_)
            else:
                self.ledger.uncertain(publication, ConnectionError())

    def receive(self, id_: str, prev: str | None, *, key: str | None = None) -> None:
        self.ledger.received(self.tab, id_, prev, key or f"key of {id_}")

    def welcome(
        self, cursor: str | None, *, given: str | None = None, resumed: bool | None = None
    ) -> None:
        self.ledger.welcomed(self.tab, given, cursor, resumed=resumed)

    def open(self) -> None:
        self.ledger.opened(self.tab)

    def close(self, code: int = 1006) -> None:
        self.ledger.closed(self.tab, code)

    def resync(self, cursor: str | None) -> None:
        self.ledger.resynced(self.tab, "history_lost", cursor)

    def figures(self) -> Figures:
        return audit(self.ledger)


@pytest.fixture
def v1() -> Story:
    """A v1 tab that was welcomed behind 1-1 and has received 2-1."""
    story = Story()
    story.publish("1-1")
    story.welcome("1-1")
    story.publish("2-1")
    story.receive("2-1", "1-1")
    return story


@pytest.fixture
def plain() -> Story:
    """A plain tab that has opened behind 1-1 and has received 2-1."""
    story = Story(is_plain=True)
    story.publish("1-1")
    story.open()
    story.publish("2-1")
    story.receive("2-1", "1-1")
    return story


def test_whole(v1: Story) -> None:
    """A tab that received everything in order, over a reconnection too, is in order."""
    v1.publish("3-1", "4-1")
    v1.receive("3-1", "2-1")
    v1.close()
    v1.welcome("4-1", given="3-1", resumed=True)
    v1.receive("4-1", "3-1")
    figures = v1.figures()
    assert figures.flawless
    assert (figures.published, figures.delivered, figures.closes) == (4, 3, {1006: 1})


def test_what_is_told_of_a_loss(v1: Story) -> None:
    """Whoever looks for the cause of a loss finds what broke then, and what the tab got around it.

    Also where much more was forgotten.
    """
    v1.ledger.remark("long ago")
    for n in range(10):
        v1.publish(f"{n + 4}-2")
        v1.ledger.remark(f"master killed, {n}")
    v1.publish("3-1", "4-1")
    v1.receive("4-1", "2-1")
    v1.ledger.remark("service killed")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (1, 10)
    (told,) = figures.losses
    assert "3-1" in told
    assert "id='2-1'" in told
    assert "id='4-1'" in told
    assert "master killed, 9" in told
    assert "long ago" not in told
    assert "service killed" not in told
    assert told in str(figures)


def test_first_of_all() -> None:
    """A user's first notification follows nothing."""
    story = Story()
    story.welcome(None)
    story.publish("1-1")
    story.receive("1-1", None)
    assert story.figures().flawless


def test_loss_between_two(v1: Story) -> None:
    """Notifications that a received one names as its predecessors are missed."""
    v1.publish("3-1", "4-1", "5-1")
    v1.receive("5-1", "4-1")
    assert v1.figures().lost == 2


def test_loss_of_what_has_no_receipt(v1: Story) -> None:
    """The chain tells of a loss even where the publisher does not know that it published."""
    v1.publish("3-1", receipt=False)
    v1.publish("4-1")
    v1.receive("4-1", "3-1")
    assert v1.figures().lost == 1


def test_loss_behind_a_receipt(v1: Story) -> None:
    """A receipt tells of a loss even where the chain hides it."""
    v1.publish("3-1", "4-1")
    v1.receive("4-1", "2-1")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (1, 0)


def test_loss_at_the_end(v1: Story) -> None:
    """What nothing follows is missed, too."""
    v1.publish("3-1")
    assert v1.figures().lost == 1


def test_loss_over_a_reconnection(v1: Story) -> None:
    """A resumption that skips something is a loss."""
    v1.publish("3-1", "4-1")
    v1.close()
    v1.welcome("4-1", given="2-1", resumed=True)
    v1.receive("4-1", "3-1")
    assert v1.figures().lost == 1


def test_loss_before_the_first() -> None:
    """Whoever was welcomed before a user's first notification is owed that one."""
    story = Story()
    story.welcome(None)
    story.publish("1-1", "2-1")
    story.receive("2-1", "1-1")
    assert story.figures().lost == 1


def test_loss_before_its_announcement(v1: Story) -> None:
    """A resync does not excuse what was skipped before it."""
    v1.publish("3-1", "4-1")
    v1.receive("4-1", "3-1")
    v1.resync("4-1")
    v1.publish("5-1")
    v1.receive("5-1", "4-1")
    assert v1.figures().lost == 1


def test_loss_behind_a_receipt_before_its_announcement(v1: Story) -> None:
    """Nor what was skipped in silence."""
    v1.publish("3-1", "4-1")
    v1.receive("4-1", "2-1")
    v1.resync("4-1")
    v1.publish("5-1")
    v1.receive("5-1", "4-1")
    assert v1.figures().lost == 1


def test_loss_after_its_announcement(v1: Story) -> None:
    """What follows the cursor of a resync is owed."""
    v1.publish("3-1", "4-1", "5-1")
    v1.resync("3-1")
    v1.receive("5-1", "4-1")
    assert v1.figures().lost == 1


def test_announced_loss(v1: Story) -> None:
    """What a resync covers is no loss without notice."""
    v1.publish("3-1", "4-1", "5-1")
    v1.resync("4-1")
    v1.receive("5-1", "4-1")
    figures = v1.figures()
    assert figures.flawless
    assert figures.resyncs == {"history_lost": 1}


def test_announced_loss_of_everything(v1: Story) -> None:
    """After a resync without a cursor a user's first notification follows nothing."""
    v1.publish("3-1")
    v1.resync(None)
    v1.publish("1-2", "2-2")
    v1.receive("1-2", None)
    v1.receive("2-2", "1-2")
    assert v1.figures().flawless


def test_restart_without_a_cursor() -> None:
    """A tab that has no cursor and is welcomed with one knows that something came meanwhile."""
    story = Story()
    story.welcome(None)
    story.close()
    story.publish("1-1")
    story.welcome("1-1")
    story.publish("2-1")
    story.receive("2-1", "1-1")
    figures = story.figures()
    assert figures.flawless
    assert figures.resyncs == {"first_cursor": 1}


def test_silent_restart_without_a_cursor() -> None:
    """One that is welcomed without a cursor again can't know what Redis has forgotten."""
    story = Story()
    story.welcome(None)
    story.close()
    story.publish("1-1")
    story.welcome(None)
    story.publish("1-2")
    story.receive("1-2", None)
    figures = story.figures()
    assert (figures.lost, figures.forgotten, figures.resyncs) == (0, 1, {})


@pytest.mark.parametrize("id_", ["2-1", "1-1"])
def test_duplicate(v1: Story, id_: str) -> None:
    """The same notification twice, however it came about, is seen."""
    v1.publish("3-1")
    v1.receive("3-1", "2-1")
    if id_ == "2-1":
        v1.receive("2-1", "1-1")
        assert v1.figures().duplicated == 1
    else:
        v1.receive("1-1", None)
        assert v1.figures().out_of_order == 1


def test_duplicate_over_a_reconnection(v1: Story) -> None:
    """A resumption that repeats the last one is seen."""
    v1.close()
    v1.welcome("2-1", given="2-1", resumed=True)
    v1.receive("2-1", "1-1")
    assert v1.figures().duplicated == 1


def test_duplicate_under_another_id(v1: Story) -> None:
    """What an idempotency key should have kept from being published twice is seen."""
    v1.publish("3-1")
    v1.receive("3-1", "2-1", key="key of 2-1")
    assert v1.figures().duplicated == 1


def test_published_again_after_a_loss(v1: Story) -> None:
    """Redis may lose a key with the rest: after a resync it is no duplicate."""
    v1.resync(None)
    v1.publish("1-2")
    v1.receive("1-2", None, key="key of 2-1")
    assert v1.figures().duplicated == 0


def test_disorder(v1: Story) -> None:
    """A notification behind a later one is seen."""
    v1.publish("3-1", "4-1")
    v1.receive("4-1", "3-1")
    v1.receive("3-1", "2-1")
    assert v1.figures().out_of_order == 1


def test_another_chain_without_notice(v1: Story) -> None:
    """A chain that began again, or branched off before the tab's place, must be announced."""
    v1.publish("3-1", "3-2")
    v1.receive("3-1", "2-1")
    v1.receive("3-2", "2-1")
    assert not v1.figures().flawless


def test_another_chain_further_on_without_notice(v1: Story) -> None:
    """So must one that is longer by now."""
    v1.publish("3-1", "3-2", "4-2")
    v1.receive("3-1", "2-1")
    v1.receive("4-2", "3-2")
    assert v1.figures().lost == 1


def test_forgotten_by_redis(v1: Story) -> None:
    """What Redis has acknowledged and lost before anybody heard it is told from other losses."""
    v1.close()
    v1.publish("3-1", "4-1", "3-2")
    v1.welcome("3-2", given="2-1", resumed=True)
    v1.receive("3-2", "2-1")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (0, 2)


def test_forgotten_by_a_second_master(v1: Story) -> None:
    """So is what a master has acknowledged that was replaced already."""
    v1.publish("3-2", "4-2", "3-1")
    v1.receive("3-2", "2-1")
    v1.receive("4-2", "3-2")
    v1.publish("5-2")
    v1.receive("5-2", "4-2")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (0, 1)
    assert "3-1" in str(figures)


def test_forgotten_although_its_successor_has_no_receipt(v1: Story) -> None:
    """That Redis went back is seen by what it then published, acknowledged or not."""
    v1.close()
    v1.publish("3-1")
    v1.publish("3-2", receipt=False)
    v1.welcome("3-2", given="2-1", resumed=True)
    v1.receive("3-2", "2-1")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (0, 1)


def test_forgotten_by_a_master_that_was_replaced_before(plain: Story) -> None:
    """A tab that opens when there are two masters is not owed what the old one acknowledges."""
    plain.publish("3-1", "4-1")
    plain.receive("3-1", "2-1")
    plain.receive("4-1", "3-1")
    plain.close()
    plain.open()
    plain.publish("3-2", "5-1")
    plain.receive("5-1", "4-1")
    figures = plain.figures()
    assert (figures.lost, figures.forgotten) == (0, 1)
    assert "3-2" in str(figures)


def test_published_by_two_masters(v1: Story) -> None:
    """A notification that two masters have carried out, each once, is received with either id."""
    publication = v1.ledger.begin(USER, "key")
    v1.ledger.uncertain(publication, TimeoutError())
    v1.receive("3-2", "2-1", key="key")
    v1.ledger.receipt(publication, "3-1")
    v1.publish("4-2")
    v1.receive("4-2", "3-2")
    figures = v1.figures()
    assert figures.flawless
    assert not figures.forgotten


def test_loss_after_redis_went_back(v1: Story) -> None:
    """That Redis went back once, and said so, does not excuse what is lost later."""
    v1.publish("3-1")
    v1.resync(None)
    v1.publish("1-2", "2-2", "3-2")
    v1.receive("1-2", None)
    v1.receive("3-2", "1-2")
    figures = v1.figures()
    assert (figures.lost, figures.forgotten) == (1, 0)
    assert "2-2" in str(figures)


def test_plain_tab_that_was_away(plain: Story) -> None:
    """A plain tab is not owed what is published between two connections."""
    plain.publish("3-1")
    plain.close()
    plain.publish("4-1")
    plain.open()
    plain.publish("5-1")
    plain.receive("5-1", "4-1")
    assert plain.figures().flawless


def test_loss_of_a_plain_tab_while_connected(plain: Story) -> None:
    """While it is connected it is owed everything."""
    plain.publish("3-1", "4-1")
    plain.receive("4-1", "3-1")
    assert plain.figures().lost == 1


def test_loss_of_a_plain_tab_at_the_beginning(plain: Story) -> None:
    """From the moment on at which it sees its connection open."""
    plain.close()
    plain.open()
    plain.publish("3-1", "4-1")
    plain.receive("4-1", "3-1")
    assert plain.figures().lost == 1


def test_resumed_without_proof(v1: Story) -> None:
    """A welcome that says `resumed: false` has to be followed by a resync."""
    v1.close()
    v1.welcome("2-1", given="2-1", resumed=False)
    v1.publish("3-1")
    v1.receive("3-1", "2-1")
    assert not v1.figures().flawless


@pytest.mark.parametrize(("given", "resumed"), [("2-1", None), (None, True), ("1-1", True)])
def test_wrong_welcome(v1: Story, given: str | None, resumed: bool | None) -> None:
    """A cursor is answered, none is not, and the tab gives the one that it has."""
    v1.close()
    v1.welcome("2-1", given=given, resumed=resumed)
    assert v1.figures().breaches


def test_notification_before_the_welcome() -> None:
    """The welcome comes first."""
    story = Story()
    story.publish("1-1")
    story.receive("1-1", None)
    assert story.figures().breaches


@pytest.mark.parametrize(("code", "flawless"), [(1013, True), (1011, False), (1008, False)])
def test_closes(v1: Story, code: int, flawless: bool) -> None:
    """A defect, or a refusal of what is in order, is a flaw; to be sent away for a while is not."""
    v1.close(code)
    assert v1.figures().flawless is flawless
