from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from huleedu_service_libs.auth import JWTClaims, TokenVerifier

_NOTHING_ELSE: Final = MappingProxyType[str, Any]({})


class JWTValidator:
    """Verifies tokens with the keys that the settings name."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    @property
    def problem(self) -> str | None:
        return self._verifier.problem

    async def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        claims = await self._verifier.verify(
            token, operation="validate_token", correlation_id=correlation_id
        )
        # Kept for as long as the connection lasts; what else the token said is not asked for.
        return replace(claims, raw=_NOTHING_ELSE)
