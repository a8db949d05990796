"""Names of channels and keys. Everybody builds them here and nowhere else."""

import functools
import itertools
from binascii import crc_hqx
from dataclasses import dataclass
from typing import NewType

ChannelName = NewType("ChannelName", str)
KeyName = NewType("KeyName", str)

DEFAULT_CHANNEL_PREFIX = "ws"
HASH_SLOTS = 16_384
_CONNECTIONS = "connections:"


def user_channel(user_id: str, prefix: str = DEFAULT_CHANNEL_PREFIX) -> ChannelName:
    """`<prefix>:<user_id>`, the id as it is: Redis compares channel names byte by byte.

    Two users never share a channel, since the prefix is the same for all of them. Raises
    ValueError for an id that is empty or, with a lone surrogate, no UTF-8.
    """
    if not user_id:
        raise ValueError("user_id is empty: a notification needs a user")
    user_id.encode()
    return ChannelName(f"{prefix}:{user_id}")


def control_channel(prefix: str = DEFAULT_CHANNEL_PREFIX) -> ChannelName:
    """Where all processes of the service are told who has to go; in the slot of the revocations.

    No user's channel has this name, whatever the prefix: behind the prefix that one has a colon,
    and here something else always stands in its place.
    """
    return ChannelName(f"huleedu-control-{_tag_of_prefix(prefix)}")


def revocations_key(prefix: str = DEFAULT_CHANNEL_PREFIX) -> KeyName:
    """`revocations:{<prefix>}`: one for the whole installation."""
    return KeyName(f"revocations:{_tag_of_prefix(prefix)}")


def ticket_key(digest: str, prefix: str = DEFAULT_CHANNEL_PREFIX) -> KeyName:
    """`ticket:<prefix>:<digest>`, anywhere on a Cluster."""
    return KeyName(f"ticket:{prefix}:{digest}")


def _tag_of_prefix(prefix: str) -> str:
    # A brace would end the hash tag, and an empty one is none.
    escaped = prefix.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return f"{{{escaped or '%'}}}"


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The keys of one user's channel, all in the channel's hash slot."""

    history: KeyName
    last: KeyName
    _tag: str

    @classmethod
    def of(cls, channel: ChannelName) -> "UserKeys":
        """`history:{<channel>}` and so on.

        A brace in the channel's own name would move or end the tag. Such a channel stands behind
        a tag of its slot, and behind its length, since what follows it in a key may look like a
        part of it: `history:{<tag>}<length>:<channel>`.
        """
        if "{" in channel or "}" in channel:
            tag = f"{{{_tag_of_slot(hash_slot(channel))}}}{len(channel)}:{channel}"
        else:
            tag = f"{{{channel}}}"
        return cls(KeyName(f"history:{tag}"), KeyName(f"last:{tag}"), tag)

    @property
    def connections(self) -> KeyName:
        """Where the user's connections are counted."""
        return KeyName(f"{_CONNECTIONS}{self._tag}")

    def idempotency(self, key: str) -> KeyName:
        """Where the id is kept that an idempotency key has produced."""
        return KeyName(f"idem:{self._tag}:{key}")


def user_of_connections(key: str, prefix: str = DEFAULT_CHANNEL_PREFIX) -> str | None:
    """Whose `UserKeys.connections` the key is; None where it is no such key."""
    tag = key.removeprefix(_CONNECTIONS)
    _, _, behind = tag.partition("}")
    # Only a channel with braces of its own stands behind the tag, after its length.
    channel = behind.partition(":")[2] if behind else tag[1:-1]
    user_id = channel.removeprefix(f"{prefix}:")
    if user_id and UserKeys.of(user_channel(user_id, prefix)).connections == key:
        return user_id
    return None


def connections_pattern(prefix: str = DEFAULT_CHANNEL_PREFIX) -> str:
    """The glob-style pattern of every `UserKeys.connections`, and of few other keys."""
    escaped = "".join(f"\\{c}" if c in "*?[]^-\\" else c for c in prefix)
    return f"{_CONNECTIONS}{{*{escaped}:*"


def hash_slot(name: str) -> int:
    """The Redis Cluster slot of a key or a shard channel.

    CRC16 (XMODEM) of the first non-empty `{…}`, else of the whole name: Redis Cluster
    specification, "Hash tags".
    """
    start = name.find("{")
    if start >= 0:
        end = name.find("}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return crc_hqx(name.encode(), 0) % HASH_SLOTS


@functools.lru_cache(maxsize=1024)
def _tag_of_slot(slot: int) -> str:
    # Found by trial: about one number in 16,384 lies in the slot.
    return next(str(n) for n in itertools.count() if crc_hqx(b"%d" % n, 0) % HASH_SLOTS == slot)
