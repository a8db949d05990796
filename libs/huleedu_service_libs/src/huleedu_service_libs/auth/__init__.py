"""Who is asking: settings for JSON Web Tokens and their verification."""

from huleedu_service_libs.auth.jwt_settings import JWTAlgorithm, JWTValidationSettings
from huleedu_service_libs.auth.jwt_validation import JWTClaims, decode_jwt
from huleedu_service_libs.auth.key_statistics import KeyStatistics
from huleedu_service_libs.auth.token_verifier import TokenVerifier

__all__ = [
    "JWTAlgorithm",
    "JWTClaims",
    "JWTValidationSettings",
    "KeyStatistics",
    "TokenVerifier",
    "decode_jwt",
]
