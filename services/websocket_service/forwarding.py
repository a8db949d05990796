"""What proxies write about those on whose behalf they ask.

The list is read from its end, and no further than it is asked for: what stands before the entry of
a trusted proxy comes from strangers, and an open quote in there must not hide that entry.
"""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Final

MAX_HOPS: Final = 32
_MAX_ENTRY_CHARS: Final = 512
_NODE = re.compile(
    r"""
    (?: \[ (?P<bracketed> [0-9a-f:.]+ ) \] | (?P<ipv4> [0-9.]+ ) )
        (?: : (?: [0-9]{1,5} | _[0-9a-z._-]+ ) )?
    | (?P<ipv6> [0-9a-f:.]+ )
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_PAIR = re.compile(
    r"""
    (?P<name> [!#$%&'*+.^_`|~0-9a-z-]+ ) =
    (?: (?P<token> [^\s"\\;,=]+ ) | " (?P<quoted> [^"\\]* ) " )
    (?: [ \t]* ; [ \t]* | $ )
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


class ProxyHeader(StrEnum):
    """Where a proxy says on whose behalf it asks; the second one is RFC 7239's."""

    X_FORWARDED_FOR = "X-Forwarded-For"
    FORWARDED = "Forwarded"


def last_hops(headers: Iterable[tuple[bytes, bytes]], header: ProxyHeader) -> Iterator[str | None]:
    """What the header of an ASGI scope names, the last one first, at most `MAX_HOPS`.

    Several lines are one list. Ports, brackets and quotes are left out; what remains may still be
    no address. None stands for an entry that can't be read: `unknown`, an obfuscated name, garbage.
    """
    wanted = header.lower().encode()
    lines = [value.decode("latin1") for name, value in headers if name.lower() == wanted]
    if not lines:
        return
    for entry in islice(_from_the_end(",".join(lines)), MAX_HOPS):
        node = _for(entry) if header is ProxyHeader.FORWARDED else _unquoted(entry)
        match = _NODE.fullmatch(node or "")
        yield match and (match["bracketed"] or match["ipv4"] or match["ipv6"])


def _from_the_end(text: str) -> Iterator[str]:
    """What stands between commas; those in quotes separate nothing."""
    end = len(text)
    while end >= 0:
        start = end
        quoted = False
        while start > 0 and (quoted or text[start - 1] != ","):
            start -= 1
            quoted ^= text[start] == '"'
            if end - start > _MAX_ENTRY_CHARS:
                yield ""
                return
        yield text[start:end].strip(" \t")
        end = start - 1


def _for(entry: str) -> str | None:
    """The one `for` of `for=192.0.2.1;proto=https`; None without one, or with a backslash.

    No address needs escaping, and from the end an escaped quote looks like a quote.
    """
    found = []
    position = 0
    while position < len(entry):
        pair = _PAIR.match(entry, position)
        if pair is None:
            return None
        if pair["name"].lower() == "for":
            found.append(pair["token"] or pair["quoted"])
        position = pair.end()
    return found[0] if len(found) == 1 else None


def _unquoted(entry: str) -> str:
    if entry.startswith('"') and entry.endswith('"'):
        return entry[1:-1]
    return entry
