"""Claims that the platform's settings accept."""

import time
from typing import Any

from huleedu_service_libs.auth import TokenVerifier
from huleedu_service_libs.error_handling import HuleEduError


def good_claims(**changes: Any) -> dict[str, Any]:
    return {
        "sub": "teacher-1",
        "aud": "huleedu-platform",
        "iss": "huleedu-identity-service",
        "exp": int(time.time()) + 600,
        **changes,
    }


async def outcome(verifier: TokenVerifier, token: str) -> str:
    """The subject of a good token, else the error's code, with the reason if it has one."""
    try:
        return (await verifier.verify(token)).subject
    except HuleEduError as caught:
        error = caught
    assert error.__cause__ is None
    assert error.__context__ is None
    assert token not in f"{error} {error.to_dict()}"
    reason = error.error_detail.details.get("reason")
    return f"{error.error_code} {reason}" if reason else error.error_code


ACCEPTED = "teacher-1"
BAD_SIGNATURE = "AUTHENTICATION_ERROR invalid_signature"
BAD_ALGORITHM = "AUTHENTICATION_ERROR invalid_algorithm"
# In no line of code, so that a stack trace does not quote it by chance.
GARBAGE = "garbage-" * 5
BAD_TOKEN = "AUTHENTICATION_ERROR invalid_token"
