"""Secrets that somebody could guess, or has read somewhere."""

import re
from typing import Final

__all__ = ["MIN_SECRET_BYTES", "WELL_KNOWN_SECRETS", "weakness"]

# They stand in examples and tutorials: whoever knows them can be anybody.
WELL_KNOWN_SECRETS: Final = frozenset(
    {
        "changeme",
        "change-me",
        "default",
        "dev",
        "dev-secret",
        "development",
        "insecure",
        "jwt-secret",
        "my-secret",
        "password",
        "secret",
        "secret-key",
        "supersecret",
        "test",
        "test-secret",
        "test-secret-key",
        "your-256-bit-secret",
        "your-secret-key",
        # In this project's own examples, and what Compose and we say of such a variable.
        "only-for-this-example-0123456789",
        "at least 32 random bytes",
        "set it to at least 32 random bytes",
    }
)

# RFC 7518, section 3.2: as long as the hash. A shorter one can be guessed from any token.
MIN_SECRET_BYTES: Final = 32
# Of 32 random decimal digits one time in a thousand there are fewer, of hexadecimal ones never.
MIN_DIFFERENT_CHARACTERS: Final = 8

_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")


def weakness(secret: str) -> str | None:
    """What is wrong with a secret, to be read after its name; None where nothing is known.

    A blank one has none: it counts as unset.
    """
    wanted = f"set it to at least {MIN_SECRET_BYTES} random bytes"
    if not secret.strip():
        return None
    if _is_well_known(secret):
        return f"is a well-known value: {wanted}"
    if secret != secret.strip():
        return (
            "begins or ends with white space, such as the line break at the end of a file, and "
            "that would be part of the secret: remove it"
        )
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"has fewer than {MIN_SECRET_BYTES} bytes: {wanted}"
    few_different = len(set(secret)) < MIN_DIFFERENT_CHARACTERS
    if few_different or len(_repeated_part(secret).encode()) < MIN_SECRET_BYTES:
        return f"repeats itself, or has few different characters: {wanted}"
    return None


def _is_well_known(secret: str) -> bool:
    """Whether it is made of well-known ones, however written and however often."""
    rest = _plain(secret)
    if not rest:
        return False
    for known in sorted(map(_plain, WELL_KNOWN_SECRETS), key=len, reverse=True):
        rest = rest.replace(known, "")
    return not rest


def _plain(text: str) -> str:
    return _SEPARATORS.sub("", text.lower())


def _repeated_part(secret: str) -> str:
    """The shortest text that, repeated at least once more, is the secret; else all of it."""
    for length in range(1, len(secret) // 2 + 1):
        if secret.startswith(secret[length:]):
            return secret[:length]
    return secret
