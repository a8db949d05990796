"""Where secrets stand that nobody was meant to send us there, and what stands there afterwards.

Pages and proxies repeat a URL in other places: `Referer`, `X-Original-URL`, a parameter of a
parameter. Parameters are found by the end of their name, however it is escaped or spelled, and
JSON Web Tokens by their look: the Base64 of `{"` or `{ `, and a dot.
"""

import re
from typing import Final

REDACTED: Final = b"redacted"
_MAYBE_ESCAPED: Final = "(?:{}|%(?:25)*(?:{:x}|{:x}))"
_VALUE_OF_PARAMETER = re.compile(
    "((?:{}){}){}".format(
        "|".join(
            "".join(_MAYBE_ESCAPED.format(c, ord(c), ord(c.upper())) for c in name)
            for name in ("token", "ticket")
        ),
        "(?:=|%(?:25)*3d)",
        r'[^&;\s"<>]+',
    ).encode(),
    re.IGNORECASE,
)
# At the beginning of a word alone: from each place in it, a long one would cost its length squared.
_JSON_WEB_TOKEN = re.compile(
    rb"""
    (?: (?<! [\w-] ) | (?<= %[0-9A-Fa-f]{2} ) )
    ey[JA] [\w-]{4,} (?: (?: \. | %(?:25)*2[Ee] ) [\w=-]* )+
    """,
    re.ASCII | re.VERBOSE,
)
_SIGNS: Final = (b"oken", b"icket", b"%", b"eyj", b"eya")
"""Without one of these in it, in lower case, a text holds nothing that the patterns find."""
_PARAMETERS = re.compile("[?#&;]")


def redact(text: bytes) -> bytes:
    """The text without the values of parameters that hold secrets, and without tokens."""
    if not _may_hold_secrets(text):
        return text
    return _JSON_WEB_TOKEN.sub(REDACTED, _VALUE_OF_PARAMETER.sub(rb"\1" + REDACTED, text))


def redact_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same of the value of each header."""
    # One quick look at all of them: hardly any request has more to show.
    if _may_hold_secrets(b"\n".join([value for _, value in headers])):
        return [(name, redact(value)) for name, value in headers]
    return headers


def _may_hold_secrets(text: bytes) -> bool:
    lower = text.lower()
    return any(sign in lower for sign in _SIGNS)


def redact_path(path: str) -> str:
    """The decoded path of a URL.

    It has parameters where a `?` was escaped, or forgotten. Elsewhere `=` is part of a name.
    """
    if "=" not in path and "ey" not in path:
        return path
    text = path.encode(errors="replace")
    has_parameters = _PARAMETERS.search(path)
    return (redact(text) if has_parameters else _JSON_WEB_TOKEN.sub(REDACTED, text)).decode()
