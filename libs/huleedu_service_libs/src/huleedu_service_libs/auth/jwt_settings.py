from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jwt
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from huleedu_service_libs.auth.signatures import HMAC_HASHES, signature_layer
from huleedu_service_libs.error_handling import raise_configuration_error

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["JWTAlgorithm", "JWTValidationSettings"]

JWTAlgorithm = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
"""What may be configured; `none` is not among them."""


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
    JWT_SECRET_KEY: SecretStr | None = Field(
        default=None,
        validation_alias="JWT_SECRET_KEY",
        description="The shared secret of the HS algorithms; never used by the others.",
    )
    JWT_PUBLIC_KEY: str | None = Field(
        default=None,
        validation_alias="JWT_PUBLIC_KEY",
        description="PEM public key of the other algorithms; `\\n` may stand for a line break.",
    )
    JWT_PUBLIC_KEY_PATH: Path | None = Field(
        default=None,
        validation_alias="JWT_PUBLIC_KEY_PATH",
        description="File with the PEM public key, if JWT_PUBLIC_KEY is unset.",
    )
    JWT_JWKS_URL: str | None = Field(
        default=None,
        validation_alias="JWT_JWKS_URL",
        description="Where the issuer publishes its key set; not a key source yet.",
    )

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
        unreadable or of another family, or if the algorithm needs a package that is not installed.
        """
        if self.JWT_ALGORITHM in HMAC_HASHES:
            variable, key, problem = self._secret()
        else:
            variable, key, problem = self._public_key()
        problem = problem or self._key_problem(key)
        if problem:
            raise_configuration_error(
                service, operation, variable, f"{variable} {problem}", correlation_id
            )
        return key

    def _secret(self) -> tuple[str, str, str | None]:
        secret = self.JWT_SECRET_KEY.get_secret_value() if self.JWT_SECRET_KEY else ""
        missing = None if secret.strip() else f"must be set for {self.JWT_ALGORITHM}"
        return "JWT_SECRET_KEY", secret, missing

    def _public_key(self) -> tuple[str, str, str | None]:
        if self.JWT_PUBLIC_KEY and self.JWT_PUBLIC_KEY.strip():
            return "JWT_PUBLIC_KEY", self.JWT_PUBLIC_KEY.replace("\\n", "\n"), None
        if self.JWT_PUBLIC_KEY_PATH is None:
            missing = f"or JWT_PUBLIC_KEY_PATH must be set for {self.JWT_ALGORITHM}"
            return "JWT_PUBLIC_KEY", "", missing
        try:
            pem = self.JWT_PUBLIC_KEY_PATH.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            return "JWT_PUBLIC_KEY_PATH", "", f"cannot be read: {type(error).__name__}"
        return "JWT_PUBLIC_KEY_PATH", pem, None

    def _key_problem(self, key: str) -> str | None:
        # PyJWT's own messages are left out: some of them quote the key.
        try:
            signature_layer(self.JWT_ALGORITHM).get_algorithm_by_name(
                self.JWT_ALGORITHM
            ).prepare_key(key)
        except NotImplementedError:
            return f"cannot be used: {self.JWT_ALGORITHM} needs the cryptography package"
        except (jwt.PyJWTError, ValueError, TypeError):
            return f"is not a key for {self.JWT_ALGORITHM}"
        return None
