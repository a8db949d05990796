from uuid import UUID

from huleedu_service_libs.auth import JWTClaims, TokenVerifier


class JWTValidator:
    """Verifies tokens with the keys that the settings name."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    @property
    def problem(self) -> str | None:
        return self._verifier.problem

    async def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        return await self._verifier.verify(
            token, operation="validate_token", correlation_id=correlation_id
        )
