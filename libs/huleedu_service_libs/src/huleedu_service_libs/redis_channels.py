"""Names of channels. Every publisher and subscriber builds them here and nowhere else."""

from typing import NewType

ChannelName = NewType("ChannelName", str)

DEFAULT_CHANNEL_PREFIX = "ws"


def user_channel(user_id: str, prefix: str = DEFAULT_CHANNEL_PREFIX) -> ChannelName:
    """`<prefix>:<user_id>`, the id as it is: Redis compares channel names byte by byte.

    Two users never share a channel, since the prefix is the same for all of them. Raises
    ValueError for an id that is empty or, with a lone surrogate, no UTF-8.
    """
    if not user_id:
        raise ValueError("user_id is empty: a notification needs a user")
    user_id.encode()
    return ChannelName(f"{prefix}:{user_id}")
