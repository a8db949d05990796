"""Who is asking: settings for JSON Web Tokens and their verification."""

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.auth.jwt_validation import JWTClaims, decode_jwt

__all__ = ["JWTClaims", "JWTValidationSettings", "decode_jwt"]
