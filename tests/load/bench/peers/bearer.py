"""The token check that every peer makes at connect, as the service makes it."""

import os

import jwt

_SECRET = os.environ["JWT_SECRET_KEY"]


def user_of(token: str) -> str | None:
    """The user whom the token names; None where it is not valid."""
    try:
        claims = jwt.decode(
            token,
            _SECRET,
            algorithms=["HS256"],
            audience="huleedu-platform",
            issuer="huleedu-identity-service",
            options={"require": ["exp", "sub", "aud", "iss"]},
        )
    except jwt.InvalidTokenError:
        return None
    return str(claims["sub"])


def user_of_header(authorization: str) -> str | None:
    """The same for the value of an `Authorization` header."""
    return user_of(authorization.removeprefix("Bearer "))
