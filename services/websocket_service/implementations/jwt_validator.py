from uuid import UUID

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.auth.jwt_validation import JWTClaims, decode_jwt


class JWTValidator:
    """Verifies tokens with the key that the settings name."""

    def __init__(self, settings: JWTValidationSettings, *, service: str) -> None:
        self._settings = settings
        self._service = service

    def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        return decode_jwt(
            token,
            self._settings,
            service=self._service,
            operation="validate_token",
            correlation_id=correlation_id,
        )
