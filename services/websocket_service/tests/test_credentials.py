"""Where a token is found, and where it is not to be found afterwards."""

import copy
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.credentials import (
    REDACTED,
    SCOPE_KEY,
    Credentials,
    CredentialShield,
    Scope,
    take_credentials,
)

# Long enough that none turns up by chance in a generated name or value.
TOKENS = st.from_regex(r"\AeyJ[A-Za-z0-9_-]{20,40}\.[A-Za-z0-9_-]{8}\.[A-Za-z0-9_-]{8}\Z")
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(
    lambda name: name not in {"token", "authorization", "sec-websocket-protocol"}
)
OTHER_PAIRS = st.lists(
    st.binary(max_size=20).filter(
        lambda pair: b"&" not in pair and not {ord("%"), ord("+")} & set(pair)
    )
    | st.builds(lambda n, v: f"{n}={quote_plus(v)}".encode(), NAMES, st.text(max_size=10)),
    max_size=4,
).map(lambda pairs: [pair for pair in pairs if pair.partition(b"=")[0] != b"token"])
OTHER_HEADERS = st.lists(
    st.tuples(NAMES.map(str.encode), st.binary(max_size=20).filter(lambda v: b"eyJ" not in v)),
    max_size=4,
)
CASES = st.sampled_from([str.lower, str.title, str.upper])


def scope(
    headers: list[tuple[bytes, bytes]] | None = None,
    query: bytes = b"",
    subprotocols: list[str] | None = None,
) -> Scope:
    return {
        "type": "websocket",
        "path": "/ws",
        "raw_path": b"/ws",
        "headers": headers or [],
        "query_string": query,
        "subprotocols": subprotocols or [],
    }


def taken(asked: Scope) -> Credentials:
    take_credentials(asked)
    credentials = asked[SCOPE_KEY]
    assert isinstance(credentials, Credentials)
    return credentials


@st.composite
def requests(draw: st.DrawFn) -> tuple[Scope, list[str], list[bytes], list[tuple[bytes, bytes]]]:
    """A scope with tokens in any places, its tokens in order, and what is to stay as it is."""
    spell = draw(CASES)
    pairs, headers = draw(OTHER_PAIRS), draw(OTHER_HEADERS)
    kept_pairs, kept_headers = list(pairs), list(headers)
    from_header = draw(st.lists(TOKENS, max_size=2))
    from_subprotocol = draw(st.lists(TOKENS, max_size=2))
    from_query = draw(st.lists(TOKENS, max_size=2))
    for token in from_header:
        scheme = spell("bearer")
        headers.append((spell("authorization").encode(), f"{scheme} {token}".encode()))
    offered = [f"bearer.{token}" for token in from_subprotocol]
    if offered:
        offered.insert(draw(st.integers(0, len(offered))), "huleedu.notify.v1")
        separator = draw(st.sampled_from([",", ", ", " , "]))
        headers.append((spell("sec-websocket-protocol").encode(), separator.join(offered).encode()))
    name = draw(st.sampled_from([b"token", b"%74oken", b"tok%65n"]))
    pairs += [name + b"=" + token.encode() for token in from_query]
    return (
        scope(headers, b"&".join(pairs), offered),
        [*from_header, *from_subprotocol, *from_query],
        kept_pairs,
        kept_headers,
    )


@given(request=requests())
def test_token_is_nowhere_else(
    request: tuple[Scope, list[str], list[bytes], list[tuple[bytes, bytes]]],
) -> None:
    """Wherever a token came, it is known to the service and to nothing that logs the request."""
    asked, tokens, kept_pairs, kept_headers = request
    credentials = taken(asked)

    assert credentials.tokens == tuple(tokens)
    assert credentials.conflicting == (len(set(tokens)) > 1)
    seen = repr(asked)  # the scope with the credentials as everybody would print them
    assert not [token for token in tokens if token in seen]

    pairs = asked["query_string"].split(b"&") if kept_pairs or asked["query_string"] else []
    assert pairs[: len(kept_pairs)] == kept_pairs
    assert asked["headers"][: len(kept_headers)] == kept_headers


@given(pairs=OTHER_PAIRS, headers=OTHER_HEADERS, protocols=st.sampled_from(["a,b", "a , b", "a"]))
def test_request_without_token_is_unchanged(
    pairs: list[bytes], headers: list[tuple[bytes, bytes]], protocols: str
) -> None:
    """A request that holds no credential passes to the byte."""
    headers = [*headers, (b"Sec-WebSocket-Protocol", protocols.encode())]
    asked = scope(headers, b"&".join(pairs), [part.strip() for part in protocols.split(",")])
    before = copy.deepcopy(asked)

    assert taken(asked) == Credentials()
    assert {name: value for name, value in asked.items() if name != SCOPE_KEY} == before


def test_header_before_subprotocol_before_query() -> None:
    """Of several credentials the header's counts first, the query's last."""
    asked = scope(
        [(b"sec-websocket-protocol", b"bearer.two"), (b"authorization", b"Bearer one")],
        b"token=three",
        ["bearer.two"],
    )
    assert taken(asked).tokens == ("one", "two", "three")


def test_same_token_twice_is_no_conflict() -> None:
    """One token that comes in two ways is one credential."""
    asked = scope([(b"authorization", b"Bearer one")], b"token=one")
    assert not taken(asked).conflicting


def test_two_different_tokens_conflict() -> None:
    """Nobody can tell which of two users a request with two tokens means."""
    asked = scope([(b"authorization", b"Bearer one")], b"token=two")
    assert taken(asked).conflicting


@pytest.mark.parametrize("value", [b"Basic dXNlcjpwYXNz", b"Bearer\tsecret", b"Bearersecret", b""])
def test_other_schemes_are_no_credential_but_stay_secret(value: bytes) -> None:
    """A password that is sent in place of a token is not taken, and not logged either."""
    asked = scope([(b"authorization", value)])
    assert taken(asked).tokens == ()
    assert asked["headers"] == [(b"authorization", REDACTED.encode())]


@pytest.mark.parametrize("query", [b"token", b"a=1&token=&b"])
def test_parameter_without_value_is_no_token(query: bytes) -> None:
    """Where nothing is given, there is nothing that could contradict the token in the header."""
    assert taken(scope(query=query)).tokens == ()
    given = taken(scope([(b"authorization", b"Bearer x.y.z")], query))
    assert given.tokens == ("x.y.z",)


def test_browser_gets_its_own_subprotocol_back() -> None:
    """The requested `bearer.<jwt>` can be selected, as a browser needs it."""
    asked = scope(
        [(b"sec-websocket-protocol", b"chat, bearer.x.y.z")], b"", ["chat", "bearer.x.y.z"]
    )
    assert taken(asked).bearer_subprotocol == "bearer.x.y.z"
    assert asked["subprotocols"] == ["chat", f"bearer.{REDACTED}"]


def test_only_what_the_server_offers_can_be_selected() -> None:
    """Hypercorn knows the last of several subprotocol headers; selecting another one would fail."""
    headers = [(b"sec-websocket-protocol", b"bearer.x"), (b"sec-websocket-protocol", b"chat")]
    credentials = taken(scope(headers, b"", ["chat"]))
    assert credentials.tokens == ("x",)
    assert credentials.bearer_subprotocol is None


def test_repr_hides() -> None:
    """Credentials that are printed by accident show no token."""
    assert "secret" not in repr(Credentials(("secret",), "bearer.secret"))


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_shield_works_in_place(kind: str) -> None:
    """The server logs from the same scope as the application sees, and both are clean."""
    seen: list[Any] = []

    async def app(inner: Scope, _receive: Any, _send: Any) -> None:
        seen.append(inner)

    asked = {**scope(query=b"token=secret"), "type": kind}
    await CredentialShield(app)(asked, None, None)  # type: ignore[arg-type]  # nothing is received or sent
    assert seen[0] is asked
    assert asked["query_string"] == b"token=redacted"


async def test_shield_leaves_the_lifespan_alone() -> None:
    """Startup and shutdown carry no request."""
    seen: list[Any] = []

    async def app(inner: Scope, _receive: Any, _send: Any) -> None:
        seen.append(inner)

    await CredentialShield(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]  # nothing is received or sent
    assert seen == [{"type": "lifespan"}]
