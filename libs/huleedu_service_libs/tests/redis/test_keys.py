"""Names of the keys behind a user's notifications."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.redis_channels import UserKeys, hash_slot, user_channel
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from libs.huleedu_service_libs.tests.redis.user_ids import USER_IDS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
# What hash tags, keys and channels are made of: here collisions would lie.
AWKWARD = st.text("{}:a1", min_size=1, max_size=8)
USER_ID = TEXT | AWKWARD
# The specification's own example, and what hash tags it knows.
SLOT_OF_DIGITS = 0x31C3
TAGGED = ["123456789", "{123456789}", "a{123456789}b", "{123456789}{b}", "}{123456789}"]
UNTAGGED = ["", "{}", "{}a", "a{}{b}", "a}", "{a", "}{", "ö{🧑‍🏫"]


def names(user_id: str, idempotency_key: str) -> tuple[str, str, str]:
    keys = UserKeys.of(user_channel(user_id))
    return keys.history, keys.last, keys.idempotency(idempotency_key)


@pytest.mark.parametrize("name", TAGGED)
def test_slot_of_a_hash_tag(name: str) -> None:
    """Of a key with something in braces only that decides where it lies."""
    assert hash_slot(name) == SLOT_OF_DIGITS


def test_names_of_a_plain_user() -> None:
    """The keys of a user are named after the channel, which is their hash tag."""
    assert names("teacher-1", "k") == (
        "history:{ws:teacher-1}",
        "last:{ws:teacher-1}",
        "idem:{ws:teacher-1}:k",
    )


@given(user_id=USER_ID, key=USER_ID, prefix=AWKWARD)
def test_all_keys_have_the_slot_of_the_channel(user_id: str, key: str, prefix: str) -> None:
    """Whatever a user is called, one node of a Cluster has the channel and all of the keys."""
    channel = user_channel(user_id, prefix)
    keys = UserKeys.of(channel)
    slots = {hash_slot(name) for name in (keys.history, keys.last, keys.idempotency(key))}
    assert slots == {hash_slot(channel)}


@given(one=st.tuples(USER_ID, USER_ID), other=st.tuples(USER_ID, USER_ID))
def test_no_two_users_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Two users, and two idempotency keys of one user, never meet in one key of Redis."""
    mine, yours = names(*one), names(*other)
    if one[0] != other[0]:
        assert not {*mine} & {*yours}
    elif one[1] != other[1]:
        assert mine[2] != yours[2]
    assert len({*mine}) == 3


def test_users_of_one_slot_share_no_key() -> None:
    """Not even two users in the same slot whose ids and idempotency keys read the same together."""
    text = "a{" + ":b" * 500
    by_slot: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for length in range(2, len(text), 2):
        user_id, key = text[:length], text[length + 1 :]
        by_slot[hash_slot(user_channel(user_id))].append((user_id, key))
    neighbours = [users for users in by_slot.values() if len(users) > 1]
    assert neighbours
    for users in neighbours:
        assert len({names(user_id, key)[2] for user_id, key in users}) == len(users)


async def test_slots_as_the_server_sees_them(redis_binary: Path) -> None:
    """Redis itself puts the channel and the keys of every user into one slot."""
    async with RedisCluster(redis_binary, masters=1) as cluster:
        admin = cluster.admin(cluster.nodes[0])
        for name in TAGGED + UNTAGGED:
            assert await admin.cluster("KEYSLOT", name) == hash_slot(name), name
        for user_id in USER_IDS:
            channel = user_channel(user_id)
            for name in (channel, *names(user_id, "a{b}c")):
                assert await admin.cluster("KEYSLOT", name) == hash_slot(channel), name
