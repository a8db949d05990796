"""Whose connections a key of Redis counts."""

from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.redis_channels import (
    UserKeys,
    hash_slot,
    user_channel,
    user_of_connections,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
# What hash tags, keys and channels are made of: here collisions would lie.
AWKWARD = st.text("{}:a1", max_size=8)
USER_ID = TEXT | AWKWARD.filter(bool)


@given(user_id=USER_ID, prefix=AWKWARD | st.just("ws"))
def test_user_of_a_key(user_id: str, prefix: str) -> None:
    """Whatever a user is called, the key tells whose it is, and lies with the user's others."""
    keys = UserKeys.of(user_channel(user_id, prefix))
    assert user_of_connections(keys.connections, prefix) == user_id
    assert hash_slot(keys.connections) == hash_slot(user_channel(user_id, prefix))


@given(key=TEXT | AWKWARD.map(lambda text: f"connections:{text}"), prefix=AWKWARD)
def test_other_keys(key: str, prefix: str) -> None:
    """No other key is taken for one that counts connections."""
    user_id = user_of_connections(key, prefix)
    assert user_id is None or UserKeys.of(user_channel(user_id, prefix)).connections == key


@given(user_id=USER_ID, prefix=AWKWARD, other=AWKWARD)
def test_other_installations(user_id: str, prefix: str, other: str) -> None:
    """Installations with different prefixes do not take each other's users for their own."""
    key = UserKeys.of(user_channel(user_id, prefix)).connections
    found = user_of_connections(key, other)
    # `a:` and `b` read as `a` and `:b`, in every name: such prefixes can't share a Redis.
    assert found is None or user_channel(found, other) == user_channel(user_id, prefix)
