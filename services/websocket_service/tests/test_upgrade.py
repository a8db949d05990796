"""What a handshake asks for, and what is selected."""

from uuid import uuid4

import pytest

from services.websocket_service.credentials import Credentials
from services.websocket_service.frames import SUBPROTOCOL_V1, Dialect
from services.websocket_service.upgrade import Upgrade


def upgrade(*requested: str, bearer: str | None = None) -> Upgrade:
    return Upgrade(uuid4(), Credentials(("t",), bearer), requested, origin=None)


@pytest.mark.parametrize(
    ("asked", "dialect", "selected"),
    [
        (upgrade(), Dialect.PLAIN, None),
        (upgrade("chat"), Dialect.PLAIN, None),
        (upgrade(SUBPROTOCOL_V1), Dialect.V1, SUBPROTOCOL_V1),
        (upgrade("chat", SUBPROTOCOL_V1), Dialect.V1, SUBPROTOCOL_V1),
        (upgrade(SUBPROTOCOL_V1.upper()), Dialect.PLAIN, None),
        (upgrade("bearer.redacted", bearer="bearer.x"), Dialect.PLAIN, "bearer.x"),
        (
            upgrade("bearer.redacted", SUBPROTOCOL_V1, bearer="bearer.x"),
            Dialect.V1,
            SUBPROTOCOL_V1,
        ),
    ],
)
def test_selection(asked: Upgrade, dialect: Dialect, selected: str | None) -> None:
    """v1 is for those who ask for it; a browser that asks for its token alone gets that back."""
    assert asked.dialect is dialect
    assert asked.subprotocol == selected


def test_repr_hides() -> None:
    """A handshake that is printed by accident shows no token."""
    assert "secret" not in repr(upgrade("bearer.redacted", bearer="bearer.secret"))
