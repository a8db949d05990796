"""Tokens for people who try the service, signed as the identity service would."""

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from huleedu_service_libs.testing.jwt_helpers import create_jwt
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.target import SigningKey


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A compact JWT and when it ends."""

    token: str = field(repr=False)
    expires_at: datetime


def mint(key: SigningKey, user: str, expires_in: timedelta) -> MintedToken:
    """A token for `user` with `iat`, `exp`, `sub`, `aud`, `iss` and a fresh `jti`.

    Raises CliError if it would end after the year 9999.
    """
    issued_at = int(time.time())
    try:
        expires_at = datetime.fromtimestamp(issued_at, UTC) + expires_in
    except OverflowError:
        raise CliError("--expires-in goes beyond the year 9999: choose less") from None
    claims = {
        "sub": user,
        "aud": key.audience,
        "iss": key.issuer,
        "iat": issued_at,
        "exp": issued_at + int(expires_in.total_seconds()),
        "jti": str(uuid.uuid4()),
    }
    return MintedToken(create_jwt(key.secret, claims, key.algorithm), expires_at)
