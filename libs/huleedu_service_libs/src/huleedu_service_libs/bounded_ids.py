"""Which texts may name a user, a token or a connection where somebody has to go."""

from typing import Final, TypeGuard

from huleedu_service_libs.error_handling import raise_validation_error

MAX_ID_BYTES: Final = 16_384
"""Of UTF-8: as long as any that a token could hold, so that whoever gets in can be put out."""


def is_bounded_id(value: object) -> TypeGuard[str]:
    """True for a text with 1 to `MAX_ID_BYTES` bytes of UTF-8."""
    return isinstance(value, str) and _problem(value) is None


def check_bounded_id(value: object, *, field: str, service: str, operation: str) -> None:
    """Raises HuleEduError (VALIDATION_ERROR, `details.field`) for anything but such a text.

    What was given is not in the error: who mistakes a token for its id must not find it in a log.
    """
    problem = _problem(value) if isinstance(value, str) else "must be a text"
    if problem is not None:
        raise_validation_error(service, operation, field, f"{field} {problem}", None)


def _problem(text: str) -> str | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "has half a surrogate pair: no UTF-8"
    if size == 0:
        return "is empty"
    return f"has {size} bytes, the limit is {MAX_ID_BYTES}" if size > MAX_ID_BYTES else None
