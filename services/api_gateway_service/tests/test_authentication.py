"""Who is asking."""

from datetime import UTC, datetime
from types import MappingProxyType
from uuid import UUID, uuid4

import pytest

from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.error_handling import HuleEduError, raise_authentication_error
from services.api_gateway_service.authentication import Caller, authenticate

CORRELATION_ID = uuid4()


class OneGoodToken:
    """Knows the token `good`, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify(self, token: str, *, operation: str, correlation_id: UUID | None) -> JWTClaims:
        """The teacher's claims."""
        self.asked.append(token)
        if token != "good":
            raise_authentication_error("service", operation, "Invalid token", correlation_id)
        return JWTClaims(
            subject="teacher-1",
            expires_at=datetime.max.replace(tzinfo=UTC),
            raw=MappingProxyType({}),
        )


@pytest.mark.parametrize("authorization", ["Bearer good", "bearer good", "BEARER  good "])
async def test_one_bearer_token_says_who_is_asking(authorization: str) -> None:
    """The caller is the token's subject."""
    caller = await authenticate(OneGoodToken(), [authorization], CORRELATION_ID)
    assert caller == Caller("teacher-1")


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["good"],
        ["Bearer"],
        ["Bearer "],
        ["Bearergood"],
        ["Basic good"],
        ["Bearer good", "Bearer good"],
        ["Bearer good", ""],
    ],
)
async def test_anything_else_is_not_even_looked_at(authorization: list[str]) -> None:
    """Which of two headers counts, proxies answer in different ways: so neither does."""
    tokens = OneGoodToken()
    with pytest.raises(HuleEduError) as refused:
        await authenticate(tokens, authorization, CORRELATION_ID)
    assert refused.value.error_code == "AUTHENTICATION_ERROR"
    assert refused.value.correlation_id == str(CORRELATION_ID)
    assert tokens.asked == []


async def test_what_is_wrong_with_a_token_its_verifier_says() -> None:
    """The error goes to the client as it is."""
    with pytest.raises(HuleEduError, match="Invalid token"):
        await authenticate(OneGoodToken(), ["Bearer bad"], CORRELATION_ID)
