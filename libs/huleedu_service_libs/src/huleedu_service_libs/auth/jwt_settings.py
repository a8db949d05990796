from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from huleedu_service_libs.auth.configured_keys import (
    KeyConfigurationError,
    check_key_source,
    key_texts,
    parse_keys,
)
from huleedu_service_libs.error_handling import raise_configuration_error

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["JWTAlgorithm", "JWTValidationSettings"]

JWTAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA"]
"""What may be configured: one of them, and nothing else is accepted then."""

MAX_LEEWAY_S = 300


class JWTValidationSettings(BaseSettings):
    """Mix-in for a service's settings: how bearer tokens are verified.

    The aliases keep these variables free of a service's own `env_prefix`: the whole platform
    shares one `JWT_SECRET_KEY`. An empty variable counts as unset.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    JWT_ALGORITHM: JWTAlgorithm = Field(
        default="HS256",
        validation_alias="JWT_ALGORITHM",
        description="The one algorithm that is accepted; a token's header never chooses.",
    )
    JWT_AUDIENCE: str = Field(
        default="huleedu-platform",
        min_length=1,
        validation_alias="JWT_AUDIENCE",
        description="Must be a token's `aud`, or among its `aud` values.",
    )
    JWT_ISSUER: str = Field(
        default="huleedu-identity-service",
        min_length=1,
        validation_alias="JWT_ISSUER",
        description="Must equal a token's `iss`.",
    )
    JWT_LEEWAY_SECONDS: Annotated[float, Field(ge=0, le=MAX_LEEWAY_S)] = Field(
        default=0,
        validation_alias="JWT_LEEWAY_SECONDS",
        description="Seconds by which the issuer's clock may differ, for `exp`, `nbf` and `iat`; "
        f"at most {MAX_LEEWAY_S}.",
    )
    JWT_SECRET_KEY: SecretStr | None = Field(
        default=None,
        validation_alias="JWT_SECRET_KEY",
        description="The shared secret of the HS algorithms; never used by the others.",
    )
    JWT_SECRET_KEY_PREVIOUS: SecretStr | None = Field(
        default=None,
        validation_alias="JWT_SECRET_KEY_PREVIOUS",
        description="The secret before it, while tokens signed with that one are still good.",
    )
    JWT_PUBLIC_KEY: str | None = Field(
        default=None,
        validation_alias="JWT_PUBLIC_KEY",
        description="PEM public key of the other algorithms; `\\n` may stand for a line break.",
    )
    JWT_PUBLIC_KEY_PATH: Path | None = Field(
        default=None,
        validation_alias="JWT_PUBLIC_KEY_PATH",
        description="File with the PEM public key; read again when it has changed.",
    )
    JWT_JWKS_URL: str | None = Field(
        default=None,
        validation_alias="JWT_JWKS_URL",
        description="Where the issuer publishes its key set, for the other algorithms.",
    )
    JWT_JWKS_CACHE_SECONDS: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=300,
        validation_alias="JWT_JWKS_CACHE_SECONDS",
        description="Seconds for which a fetched key set is fresh; the next one is fetched before.",
    )
    JWT_JWKS_COOLDOWN_SECONDS: Annotated[float, Field(ge=0.1, le=3_600)] = Field(
        default=10,
        validation_alias="JWT_JWKS_COOLDOWN_SECONDS",
        description="Seconds between two fetches that tokens with an unknown key id can cause.",
    )

    @property
    def key_problem(self) -> str | None:
        """Why these settings can't verify any token: a sentence that names the variables.

        Whether a key server answers is for `TokenVerifier.problem`.
        """
        try:
            check_key_source(self)
            if not self.JWT_JWKS_URL:
                parse_keys(key_texts(self), self.JWT_ALGORITHM)
        except KeyConfigurationError as problem:
            return str(problem)
        return None

    def get_jwt_verification_key(
        self,
        *,
        service: str = "huleedu_service_libs",
        operation: str = "get_jwt_verification_key",
        correlation_id: UUID | None = None,
    ) -> str:
        """The key for `JWT_ALGORITHM`: the secret for HS*, else the PEM public key.

        Each family has its own variables and a key of the wrong family is refused, so a public
        key can never serve as an HMAC secret. The key file is read on each call: a rotated key
        counts without a restart.

        Raises HuleEduError CONFIGURATION_ERROR naming the variable if the key is missing,
        unreadable or of another family, or if keys come from JWT_JWKS_URL.
        """
        try:
            texts = key_texts(self)
            parse_keys(texts, self.JWT_ALGORITHM)
        except KeyConfigurationError as problem:
            raise_configuration_error(
                service, operation, problem.variable, str(problem), correlation_id
            )
        return texts[0].text
