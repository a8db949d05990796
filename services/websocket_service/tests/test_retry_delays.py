from services.websocket_service.retry_delays import MAX_DELAY_S, RetryDelays


def test_delays_grow_to_a_limit_and_are_spread() -> None:
    """Those that lost the same server do not come back in step, nor ever stop trying."""
    retry_delays = RetryDelays(first_delay_s=0.5)
    delays = [retry_delays.next_delay_s() for _ in range(2000)]
    assert 0.25 <= delays[0] <= 0.5
    assert all(MAX_DELAY_S / 2 <= delay <= MAX_DELAY_S for delay in delays[10:])
    assert len(set(delays[10:])) > 1
    retry_delays.reset()
    assert retry_delays.next_delay_s() <= 0.5
