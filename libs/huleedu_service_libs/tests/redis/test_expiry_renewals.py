"""When expiries are due to be renewed."""

from huleedu_service_libs.expiry_renewals import MAX_REMEMBERED, ExpiryRenewals
from huleedu_service_libs.redis_channels import user_channel

CHANNEL = user_channel("t")


def test_due_once() -> None:
    """A renewal is due until it is done, for each channel by itself."""
    renewals = ExpiryRenewals(interval_s=1000)
    due_at = renewals.due_at(CHANNEL)
    assert due_at is not None
    assert renewals.due_at(CHANNEL) is not None
    renewals.done(CHANNEL, due_at)
    assert renewals.due_at(CHANNEL) is None
    assert renewals.due_at(user_channel("another")) is not None


def test_due_again() -> None:
    """Once the interval is over it is due again."""
    renewals = ExpiryRenewals(interval_s=1000)
    due_at = renewals.due_at(CHANNEL)
    assert due_at is not None
    renewals.done(CHANNEL, due_at - 1000)
    assert renewals.due_at(CHANNEL) is not None


def test_memory_is_bounded() -> None:
    """With more users than can be remembered, some are renewed too early and none too late."""
    renewals = ExpiryRenewals(interval_s=1000)
    due_at = renewals.due_at(CHANNEL)
    assert due_at is not None
    channels = [user_channel(f"{n}") for n in range(MAX_REMEMBERED + 1)]
    for channel in channels:
        renewals.done(channel, due_at)
    remembered = [channel for channel in channels if renewals.due_at(channel) is None]
    assert remembered == channels[-1:]
