"""Which pages may connect.

A browser sends one origin, in ASCII and lower case, without a default port and without a path
(RFC 6454, section 7; WHATWG HTML, "serialization of an origin"), or `null` for a page that has none
of its own: from a file, in a sandbox, after a redirect to another site. Anybody can be `null`.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

ANY_ORIGIN: Final = "*"
_WILDCARD: Final = "*."
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_HOST_CHARS: Final = 253
_MAX_PORT: Final = 65_535
_SERIALIZED = re.compile(
    r"""
    (?P<scheme> [a-z][a-z0-9+.-]* ) ://
    (?P<host> \[ [0-9a-f:.]+ \] | [a-z0-9_*-]+ (?: \. [a-z0-9_-]+ )* )
    (?: : (?P<port> [0-9]{1,5} ) )?
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_WITH_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int | None
    """None for the default of a scheme of which it is not known."""


class AllowedOrigins:
    """What `CORS_ORIGINS` says; an empty list and `*` allow every origin but `null`.

    An entry that has an `origin_problem` allows nothing.
    """

    def __init__(self, origins: Iterable[str], *, allow_missing: bool) -> None:
        listed = list(origins)
        usable = [entry for entry in listed if origin_problem(entry) is None]
        parsed = [origin for entry in usable if (origin := _parse(entry.removesuffix("/")))]
        self._any = not listed or ANY_ORIGIN in listed
        self._exact = frozenset(o for o in parsed if not o.host.startswith(_WILDCARD))
        self._parents = frozenset(
            _Origin(o.scheme, o.host.removeprefix(_WILDCARD), o.port)
            for o in parsed
            if o.host.startswith(_WILDCARD)
        )
        self._allow_missing = allow_missing

    def allow(self, origin: str | None) -> bool:
        """Whether the value of the Origin header lets its sender in; None stands for no header.

        Several headers, joined by commas, are no origin.
        """
        if origin is None:
            return self._allow_missing
        asked = _parse(origin)
        if asked is None or ANY_ORIGIN in asked.host:
            return False
        return (
            self._any
            or asked in self._exact
            or any(_Origin(asked.scheme, p, asked.port) in self._parents for p in _above(asked))
        )


def origin_problem(entry: str) -> str | None:
    """Why an entry of `CORS_ORIGINS` can't be used; None where it can.

    `*` has none here: whether it is safe depends on where the service runs.
    """
    if entry == ANY_ORIGIN:
        return None
    origin = _parse(entry.removesuffix("/"))
    if origin is None:
        return _malformation(entry)
    if origin.scheme in {"ws", "wss"}:
        return "is the service's address: write the page's origin, with http:// or https://"
    return _wildcard_problem(origin) if ANY_ORIGIN in origin.host else None


def _malformation(entry: str) -> str:
    if not entry.strip():
        return "is empty"
    if entry.lower() == "null":
        return "is what every sandboxed page and every file sends"
    if not entry.isascii():
        return "has other characters than ASCII: browsers send the xn-- form of such a name"
    if not _WITH_SCHEME.match(entry):
        return "has no scheme: write https://app.example.org"
    return (
        "is no origin: write scheme, host and, unless it is the default, port, as in "
        "https://app.example.org:8443"
    )


def _wildcard_problem(origin: _Origin) -> str | None:
    parent = origin.host.removeprefix(_WILDCARD)
    if ANY_ORIGIN in parent:
        return "has its * in the wrong place: https://*.example.org stands for every subdomain"
    if "." not in parent and parent != "localhost":
        return f"stands for all of {parent}: name the domain, as in https://*.example.org"
    return None


def _parse(text: str) -> _Origin | None:
    """The origin that is serialized in the text; None where there is none, as for `null`."""
    match = _SERIALIZED.fullmatch(text)
    if match is None:
        return None
    scheme, host = match["scheme"].lower(), _canonical_host(match["host"].lower())
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS.get(scheme)
    if host is None or (port is not None and port > _MAX_PORT):
        return None
    return _Origin(scheme, host, port)


def _canonical_host(host: str) -> str | None:
    # A name whose last label is a number is an IPv4 address to browsers, or no host at all.
    is_number = _NUMBER.fullmatch(host.rpartition(".")[2])
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if is_number:
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    return host if len(host) <= _MAX_HOST_CHARS else None


def _above(origin: _Origin) -> Iterator[str]:
    """The domains that a host is a subdomain of, the closest first."""
    parent = origin.host.partition(".")[2]
    while parent:
        yield parent
        parent = parent.partition(".")[2]
