"""How often a worker is started again."""

from services.websocket_service.workers.restart_backoff import (
    MAX_DELAY_S,
    STABLE_AFTER_S,
    RestartBackoff,
)


def test_the_first_crash_costs_no_time() -> None:
    """A worker that crashes once in a while is replaced at once, each time."""
    backoff = RestartBackoff()
    assert [backoff.next_delay_s(served_s=STABLE_AFTER_S) for _ in range(3)] == [0.0] * 3


def test_each_further_crash_costs_more() -> None:
    """The delay doubles up to its maximum, and stays there however often it crashes."""
    backoff = RestartBackoff()
    delays = [backoff.next_delay_s(served_s=1.0) for _ in range(2000)]
    assert delays[:8] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY_S]
    assert {*delays[8:]} == {MAX_DELAY_S}


def test_good_conduct_is_rewarded() -> None:
    """A worker that has served for long is replaced at once, whatever was before."""
    backoff = RestartBackoff()
    for _ in range(5):
        backoff.next_delay_s(served_s=1.0)
    assert backoff.next_delay_s(served_s=STABLE_AFTER_S) == 0.0
    assert backoff.next_delay_s(served_s=1.0) == 0.5
