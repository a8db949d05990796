"""Where a request carries its credentials, and how they are kept out of everything else.

They are taken out of the ASGI scope before anything can log or trace them: what the server's access
log, the framework and the tracing middleware see afterwards has no token, ticket or key in it.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote_plus

from services.websocket_service.redaction import REDACTED, redact, redact_headers, redact_path

SCOPE_KEY: Final = "huleedu.credentials"
INTERNAL_API_KEY_HEADER: Final = "X-Internal-API-Key"
INTERNAL_API_KEY_SCOPE_KEY: Final = "huleedu.internal_api_key"
"""Of the scope: the value of the one such header; None without it, or with several"""
BEARER_SUBPROTOCOL: Final = "bearer."
TOKEN_PARAMETER: Final = "token"  # noqa: S105 - the parameter's name
TICKET_PARAMETER: Final = "ticket"

_REDACTED_TEXT: Final = REDACTED.decode()
_INTERNAL_API_KEY_NAME: Final = INTERNAL_API_KEY_HEADER.lower().encode()
# Nothing here reads these, and what they hold opens other doors.
_SECRET_HEADERS: Final = frozenset({b"cookie", b"proxy-authorization"})

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]
ASGIApp = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one request shows to be let in; its repr shows none of it."""

    tokens: tuple[str, ...] = field(repr=False, default=())
    """In order of precedence: of the header, the subprotocol, the URL."""
    bearer_subprotocol: str | None = field(repr=False, default=None)
    """The requested `bearer.<jwt>` as it came: a browser must see one of its own come back."""
    tickets: tuple[str, ...] = field(repr=False, default=())
    in_url: bool = False
    """Whether there is a token or a ticket in the URL."""

    @property
    def conflicting(self) -> bool:
        """True where one request holds two different credentials."""
        return len({*self.tokens}) + len({*self.tickets}) > 1


class CredentialShield:
    """ASGI middleware: puts `Credentials` into the scope and redacts where they stood.

    It changes the scope in place, since the server logs from the same dictionary.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """Take the credential out, then call the application."""
        if scope["type"] in {"http", "websocket"}:
            take_credentials(scope)
        await self._app(scope, receive, send)


def take_credentials(scope: Scope) -> None:
    """Move the secrets of an ASGI scope to keys of its own.

    `scope["huleedu.credentials"]` has the tokens and tickets, `scope["huleedu.internal_api_key"]`
    the key of the internal API.
    """
    from_headers: list[str] = []
    from_subprotocols: list[str] = []
    api_keys: list[str] = []
    headers: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        lower = name.lower()
        kept = REDACTED
        if lower == b"authorization":
            scheme, _, token = value.decode("latin1").partition(" ")
            if scheme.lower() == "bearer":
                from_headers.append(token.strip())
        elif lower == b"sec-websocket-protocol":
            offered = value.decode("latin1").split(",")
            from_subprotocols += _bearers(offered)
            kept = ",".join(map(_redact_subprotocol, offered)).encode("latin1")
        elif lower == _INTERNAL_API_KEY_NAME:
            api_keys.append(value.decode("latin1"))
        elif lower not in _SECRET_HEADERS:
            kept = value
        headers.append((name, kept))

    query = _Query(scope["query_string"])
    # The server's own list: of several headers Hypercorn knows the last one's alone, and refuses to
    # select anything else.
    selectable = _bearers(scope.get("subprotocols", ()))
    scope[SCOPE_KEY] = Credentials(
        tokens=tuple(filter(None, (*from_headers, *from_subprotocols, *query.tokens))),
        bearer_subprotocol=BEARER_SUBPROTOCOL + selectable[0] if selectable else None,
        tickets=tuple(query.tickets),
        in_url=bool(query.tokens or query.tickets),
    )
    scope[INTERNAL_API_KEY_SCOPE_KEY] = api_keys[0] if len(api_keys) == 1 else None
    scope["headers"] = redact_headers(headers)
    scope["query_string"] = query.redacted
    path = redact_path(scope["path"])
    if path != scope["path"]:
        scope["path"], scope["raw_path"] = path, quote(path).encode()
    if "subprotocols" in scope:
        scope["subprotocols"] = [_redact_subprotocol(p) for p in scope["subprotocols"]]


def _bearers(subprotocols: Iterable[str]) -> list[str]:
    """The tokens among the offered subprotocols."""
    return [
        name.strip().removeprefix(BEARER_SUBPROTOCOL)
        for name in subprotocols
        if name.strip().startswith(BEARER_SUBPROTOCOL)
    ]


def _redact_subprotocol(subprotocol: str) -> str:
    before, bearer, _ = subprotocol.partition(BEARER_SUBPROTOCOL)
    if bearer and not before.strip():
        return before + BEARER_SUBPROTOCOL + _REDACTED_TEXT
    if "ey" in subprotocol:
        return redact(subprotocol.encode("latin1", "replace")).decode("latin1")
    return subprotocol


class _Query:
    """Taken apart pair by pair, so that the other parameters stay as they were to the byte."""

    def __init__(self, query_string: bytes) -> None:
        self.tokens: list[str] = []
        self.tickets: list[str] = []
        found = {TOKEN_PARAMETER: self.tokens, TICKET_PARAMETER: self.tickets}
        pairs = []
        for pair in query_string.split(b"&"):
            name, _, value = pair.partition(b"=")
            values = found.get(unquote_plus(name.decode("latin1")))
            if values is None:
                pairs.append(pair)
                continue
            if value:
                values.append(unquote_plus(value.decode("latin1")))
            pairs.append(name + b"=" + REDACTED)
        self.redacted = redact(b"&".join(pairs))
