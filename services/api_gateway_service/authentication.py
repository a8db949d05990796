"""Who is asking: the bearer token of a request, verified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from huleedu_service_libs.error_handling import raise_authentication_error
from services.api_gateway_service.config import SERVICE_NAME
from services.api_gateway_service.protocols import TokensProtocol

_OPERATION: Final = "authenticate"
_SCHEME: Final = "bearer"


@dataclass(frozen=True, slots=True)
class Caller:
    """The user for whom a request is made, as a verified token says."""

    user_id: str


async def authenticate(
    tokens: TokensProtocol, authorization: Sequence[str], correlation_id: UUID
) -> Caller:
    """The caller that the values of the Authorization header prove.

    Raises HuleEduError: AUTHENTICATION_ERROR for anything but one `Bearer` token that is good now,
    CONFIGURATION_ERROR or CONNECTION_ERROR for want of a key.
    """
    token = _bearer_token(authorization)
    if token is None:
        raise_authentication_error(
            SERVICE_NAME,
            _OPERATION,
            "One Authorization header is needed: Bearer, a blank, and the token",
            correlation_id,
            reason="no_bearer_token",
        )
    claims = await tokens.verify(token, operation=_OPERATION, correlation_id=correlation_id)
    return Caller(claims.subject)


def _bearer_token(authorization: Sequence[str]) -> str | None:
    # Which of several counts is a question that proxies answer in different ways.
    if len(authorization) != 1:
        return None
    scheme, _, token = authorization[0].partition(" ")
    return token.strip() or None if scheme.lower() == _SCHEME else None
