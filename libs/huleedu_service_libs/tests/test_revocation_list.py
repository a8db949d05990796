"""Revocations in memory, against a list of all that was ever said."""

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.revocation_list import KEPT_PAST_EXPIRY, Revocation, RevocationList

START = datetime(2026, 1, 1, tzinfo=UTC)
RETENTION = timedelta(minutes=20)
MINUTES = st.integers(0, 60).map(lambda minutes: START + timedelta(minutes=minutes))
IDS = st.sampled_from(["a", "b", "c"])
REVOCATIONS = st.builds(
    lambda id_, moment: Revocation(token_id=id_, expires_at=moment), IDS, MINUTES
) | st.builds(
    lambda id_, moment: Revocation(
        user_id=id_, issued_before=moment, expires_at=moment + RETENTION
    ),
    IDS,
    MINUTES,
)
CLAIMS = [
    JWTClaims(
        subject=subject,
        token_id=token_id,
        issued_at=issued_at,
        expires_at=START + timedelta(days=1),
        raw=MappingProxyType({}),
    )
    for subject in ("a", "b", "c", "d")
    for token_id in (None, "", "a", "b", "c", "d")
    for issued_at in (None, *(START + timedelta(minutes=m) for m in (-1, 0, 7, 30, 59, 60, 61)))
]


def covers(revocation: Revocation, claims: JWTClaims) -> bool:
    if revocation.token_id is not None:
        return claims.token_id == revocation.token_id
    if revocation.user_id != claims.subject:
        return False
    return claims.issued_at is None or claims.issued_at < (revocation.issued_before or START)


@given(steps=st.lists(REVOCATIONS | MINUTES, max_size=30))
def test_list_covers_what_any_revocation_covers(steps: list[Revocation | datetime]) -> None:
    """Whatever was revoked in whichever order, a token is refused as long as one of it says so."""
    revocations = RevocationList()
    said: list[Revocation] = []
    for step in steps:
        if isinstance(step, datetime):
            revocations.forget(step)
            said = [r for r in said if r.expires_at + KEPT_PAST_EXPIRY > step]
            continue
        before = [revocations.covers(claims) for claims in CLAIMS]
        is_new = revocations.add(step)
        said.append(step)
        after = [any(covers(r, claims) for r in said) for claims in CLAIMS]
        assert [revocations.covers(claims) for claims in CLAIMS] == after
        # A user's moment may lie between two of the tokens here.
        assert is_new or before == after
        assert len(revocations) == len({(r.token_id, r.user_id) for r in said})
    assert [revocations.covers(claims) for claims in CLAIMS] == [
        any(covers(r, claims) for r in said) for claims in CLAIMS
    ]


@given(revocation=REVOCATIONS)
def test_saying_it_twice_is_no_news(revocation: Revocation) -> None:
    """A revocation that is known is not told to the connections again."""
    revocations = RevocationList()
    assert revocations.add(revocation)
    assert not revocations.add(revocation)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"user_id": "a"},
        {"issued_before": START},
        {"token_id": "t", "user_id": "a"},
        {"token_id": "t", "issued_before": START},
        {"token_id": "t", "user_id": "a", "issued_before": START},
    ],
    ids=lambda fields: "+".join(fields) or "nothing",
)
def test_half_a_revocation(fields: dict[str, str | datetime]) -> None:
    """What names neither one token nor a user and a moment revokes nothing and is refused."""
    with pytest.raises(ValueError, match="token_id, or a user_id with issued_before"):
        Revocation(**fields, expires_at=START)  # type: ignore[arg-type]
