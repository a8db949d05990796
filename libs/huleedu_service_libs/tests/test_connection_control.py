"""What is said to all processes of the WebSocket service, as text."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from huleedu_service_libs.bounded_ids import MAX_ID_BYTES, is_bounded_id
from huleedu_service_libs.connection_control import (
    MAX_MESSAGE_BYTES,
    ControlMessage,
    ControlMessageError,
    Disconnect,
    Revoked,
    encode,
    parse,
)
from huleedu_service_libs.epoch_microseconds import epoch_us, moment_at
from huleedu_service_libs.revocation_list import Revocation

ID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256).filter(
    is_bounded_id
)
# Those of every time zone lie within these days.
MOMENT = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
ANYWHERE = st.builds(lambda moment, zone: moment.astimezone(zone), MOMENT, st.timezones())
REVOKED = st.builds(
    Revoked,
    st.builds(lambda id_, end: Revocation(token_id=id_, expires_at=end), ID, MOMENT)
    | st.builds(
        lambda id_, start, end: Revocation(user_id=id_, issued_before=start, expires_at=end),
        ID,
        MOMENT,
        MOMENT,
    ),
)
DISCONNECT = st.builds(
    lambda user_id, connection_id, reconnect: Disconnect(
        user_id=user_id, connection_id=connection_id, reconnect=reconnect
    ),
    ID,
    ID | st.none(),
    st.booleans(),
) | st.builds(lambda id_: Disconnect(connection_id=id_), ID)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(message=REVOKED | DISCONNECT)
@example(message=Disconnect(user_id="\x00" * MAX_ID_BYTES, connection_id="\x01" * MAX_ID_BYTES))
def test_what_is_said_is_understood(message: ControlMessage) -> None:
    """Every message arrives as it was meant, and is within the limit."""
    payload = encode(message)
    assert parse(payload) == message
    assert len(payload) <= MAX_MESSAGE_BYTES


@given(moment=ANYWHERE)
def test_moments_are_exact(moment: datetime) -> None:
    """A moment, in whichever time zone, arrives to the microsecond."""
    assert moment_at(epoch_us(moment)) == moment.astimezone(UTC)


@given(payload=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(payload=b"[" * 4000)
@example(payload=b'{"type":"disconnect"}')
@example(payload=b'{"type":"disconnect","user_id":""}')
@example(payload=b'{"type":"disconnect","user_id":null,"connection_id":null}')
@example(payload=b'{"type":"disconnect","user_id":["a"]}')
@example(payload=b'{"type":"disconnect","user_id":"a","reconnect":1}')
@example(payload=b'{"type":"disconnect","user_id":"%b"}' % (b"x" * (MAX_ID_BYTES + 1)))
@example(payload=rb'{"type":"disconnect","user_id":"\ud800"}')
@example(payload=b'{"type":"revoked","token_id":"t"}')
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":true}')
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":1.5}')
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":NaN}')
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":9e99}')
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":1%b}' % (b"0" * 20))
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":1%b}' % (b"0" * 400))
@example(payload=b'{"type":"revoked","token_id":"t","expires_at_us":-1%b}' % (b"0" * 18))
@example(payload=b'{"type":"revoked","user_id":"u","expires_at_us":1}')
@example(payload=b'{"type":"revoked","user_id":"u","token_id":"t","expires_at_us":1}')
@example(payload=b'{"type":["revoked"],"token_id":"t","expires_at_us":1}')
@example(payload=encode(Disconnect(user_id="a")) + b" " * MAX_MESSAGE_BYTES)
def test_what_nobody_said_is_refused(payload: bytes) -> None:
    """Whatever else is published is no message, and the refusal does not repeat it."""
    with pytest.raises(ControlMessageError) as refused:
        parse(payload)
    assert refused.value.__cause__ is None
    assert len(str(refused.value)) < 80


FIELDS = ("type", "user_id", "token_id", "connection_id", "reconnect")
TIMES = ("issued_before_us", "expires_at_us")


@given(
    said=st.fixed_dictionaries(
        {"type": st.sampled_from(["revoked", "disconnect"])},
        optional=dict.fromkeys(FIELDS[1:], JSON_VALUE | ID)
        | dict.fromkeys(TIMES, JSON_VALUE | st.integers(-(10**18), 10**18)),
    )
)
def test_any_object_is_a_message_or_refused(said: dict[str, object]) -> None:
    """What is taken for a message can be said again and means the same."""
    try:
        message = parse(json.dumps(said).encode())
    except ControlMessageError:
        return
    assert parse(encode(message)) == message


def test_fields_of_a_later_version() -> None:
    """A process goes on understanding others that say more."""
    assert parse(b'{"type":"disconnect","user_id":"a","why":"rest"}') == Disconnect(user_id="a")
