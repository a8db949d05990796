"""Where a handshake carries its token, and how the token is kept out of everything else.

The credential is taken out of the ASGI scope before anything can log or trace it: what the
server's access log, the framework and the tracing middleware see afterwards has no token in it.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_plus

SCOPE_KEY: Final = "huleedu.credentials"
REDACTED: Final = "redacted"
BEARER_SUBPROTOCOL: Final = "bearer."
TOKEN_PARAMETER: Final = "token"  # noqa: S105 - the parameter's name

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]
ASGIApp = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The tokens of one handshake, in order of precedence; its repr shows none of them."""

    tokens: tuple[str, ...] = field(repr=False, default=())
    bearer_subprotocol: str | None = field(repr=False, default=None)
    """The requested `bearer.<jwt>` as it came: a browser must see one of its own come back."""

    @property
    def conflicting(self) -> bool:
        """True where one request holds two different tokens."""
        return len(set(self.tokens)) > 1


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
    """Move the tokens of an ASGI scope to `scope["huleedu.credentials"]`."""
    from_headers: list[str] = []
    from_subprotocols: list[str] = []
    headers: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            scheme, _, token = value.decode("latin1").partition(" ")
            if scheme.lower() == "bearer":
                from_headers.append(token.strip())
            headers.append((name, REDACTED.encode()))
        elif name.lower() == b"sec-websocket-protocol":
            offered = value.decode("latin1").split(",")
            from_subprotocols += _bearers(offered)
            headers.append((name, ",".join(map(_redact_subprotocol, offered)).encode("latin1")))
        else:
            headers.append((name, value))

    query_string, from_query = _take_query_tokens(scope["query_string"])
    # The server's own list: of several headers Hypercorn knows the last one's alone, and refuses to
    # select anything else.
    selectable = _bearers(scope.get("subprotocols", ()))
    scope[SCOPE_KEY] = Credentials(
        tokens=tuple(token for token in (*from_headers, *from_subprotocols, *from_query) if token),
        bearer_subprotocol=BEARER_SUBPROTOCOL + selectable[0] if selectable else None,
    )
    scope["headers"] = headers
    scope["query_string"] = query_string
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
    if subprotocol.strip().startswith(BEARER_SUBPROTOCOL):
        return subprotocol.partition(BEARER_SUBPROTOCOL)[0] + BEARER_SUBPROTOCOL + REDACTED
    return subprotocol


def _take_query_tokens(query_string: bytes) -> tuple[bytes, list[str]]:
    # Pair by pair, so that the other parameters stay as they were to the byte.
    tokens = []
    pairs = []
    for pair in query_string.split(b"&"):
        name, separator, value = pair.partition(b"=")
        if unquote_plus(name.decode("latin1")) == TOKEN_PARAMETER:
            if separator:
                tokens.append(unquote_plus(value.decode("latin1")))
            pairs.append(name + b"=" + REDACTED.encode())
        else:
            pairs.append(pair)
    return b"&".join(pairs), tokens
