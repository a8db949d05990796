"""Where credentials are found, and where they are not to be found afterwards."""

import copy
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.credentials import (
    INTERNAL_API_KEY_SCOPE_KEY,
    SCOPE_KEY,
    Credentials,
    CredentialShield,
    Scope,
    take_credentials,
)

# Long enough that none turns up by chance in a generated name or value.
TOKENS = st.from_regex(r"\AeyJ[A-Za-z0-9_-]{20,40}\.[A-Za-z0-9_-]{8}\.[A-Za-z0-9_-]{8}\Z")
TICKETS = st.from_regex(r"\A[A-Za-z0-9_-]{43}\Z")
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(
    lambda name: (
        not name.endswith(("token", "ticket"))
        and name not in {"authorization", "sec-websocket-protocol", "cookie"}
    )
)
OTHER_PAIRS = st.lists(
    st.binary(max_size=20).filter(
        lambda pair: b"&" not in pair and not {ord("%"), ord("+")} & set(pair)
    )
    | st.builds(lambda n, v: f"{n}={quote_plus(v)}".encode(), NAMES, st.text(max_size=10)),
    max_size=4,
)
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
def requests(
    draw: st.DrawFn,
) -> tuple[Scope, list[str], list[str], list[bytes], list[tuple[bytes, bytes]]]:
    """A scope with credentials in any places, its tokens and tickets in order, and what stays."""
    spell = draw(CASES)
    pairs, headers = draw(OTHER_PAIRS), draw(OTHER_HEADERS)
    kept_pairs, kept_headers = list(pairs), list(headers)
    from_header = draw(st.lists(TOKENS, max_size=2))
    from_subprotocol = draw(st.lists(TOKENS, max_size=2))
    from_query = draw(st.lists(TOKENS, max_size=2))
    tickets = draw(st.lists(TICKETS, max_size=2))
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
    pairs += [b"ticket=" + ticket.encode() for ticket in tickets]
    return (
        scope(headers, b"&".join(pairs), offered),
        [*from_header, *from_subprotocol, *from_query],
        tickets,
        kept_pairs,
        kept_headers,
    )


@given(request=requests())
def test_token_is_nowhere_else(
    request: tuple[Scope, list[str], list[str], list[bytes], list[tuple[bytes, bytes]]],
) -> None:
    """Wherever a token came, it is known to the service and to nothing that logs the request."""
    asked, tokens, tickets, kept_pairs, kept_headers = request
    in_url = b"=eyJ" in asked["query_string"] or bool(tickets)
    credentials = taken(asked)

    assert credentials.tokens == tuple(tokens)
    assert credentials.tickets == tuple(tickets)
    assert credentials.conflicting == (len({*tokens, *tickets}) > 1)
    assert credentials.in_url == in_url
    seen = repr(asked)  # the scope with the credentials as everybody would print them
    assert not [secret for secret in (*tokens, *tickets) if secret in seen]

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
    ours = {SCOPE_KEY, INTERNAL_API_KEY_SCOPE_KEY}
    assert {name: value for name, value in asked.items() if name not in ours} == before


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


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(b"authorization", b"Bearer one")], b"ticket=two"),
        ([(b"authorization", b"Bearer one")], b"ticket=one"),
        ([], b"token=one&ticket=two"),
        ([], b"ticket=one&ticket=two"),
    ],
)
def test_a_ticket_is_for_those_who_have_nothing_else(
    headers: list[tuple[bytes, bytes]], query: bytes
) -> None:
    """A ticket together with a token, or with another ticket, says two things."""
    assert taken(scope(headers, query)).conflicting


def test_the_same_ticket_twice_is_no_conflict() -> None:
    """One ticket that is written twice is one credential."""
    credentials = taken(scope(query=b"ticket=one&ticket=one"))
    assert credentials.tickets == ("one", "one")
    assert not credentials.conflicting


def test_two_different_tokens_conflict() -> None:
    """Nobody can tell which of two users a request with two tokens means."""
    asked = scope([(b"authorization", b"Bearer one")], b"token=two")
    assert taken(asked).conflicting


@pytest.mark.parametrize("value", [b"Basic dXNlcjpwYXNz", b"Bearer\tsecret", b"Bearersecret", b""])
def test_other_schemes_are_no_credential_but_stay_secret(value: bytes) -> None:
    """A password that is sent in place of a token is not taken, and not logged either."""
    asked = scope([(b"authorization", value)])
    assert taken(asked).tokens == ()
    assert asked["headers"] == [(b"authorization", b"redacted")]


@pytest.mark.parametrize("query", [b"token", b"a=1&token=&b", b"ticket=&ticket"])
def test_parameter_without_value_is_no_token(query: bytes) -> None:
    """Where nothing is given, there is nothing that could contradict the token in the header."""
    assert taken(scope(query=query)) == Credentials()
    given = taken(scope([(b"authorization", b"Bearer x.y.z")], query))
    assert given.tokens == ("x.y.z",)


def test_browser_gets_its_own_subprotocol_back() -> None:
    """The requested `bearer.<jwt>` can be selected, as a browser needs it."""
    asked = scope(
        [(b"sec-websocket-protocol", b"chat, bearer.x.y.z")], b"", ["chat", "bearer.x.y.z"]
    )
    assert taken(asked).bearer_subprotocol == "bearer.x.y.z"
    assert asked["subprotocols"] == ["chat", "bearer.redacted"]


def test_only_what_the_server_offers_can_be_selected() -> None:
    """Hypercorn knows the last of several subprotocol headers; selecting another one would fail."""
    headers = [(b"sec-websocket-protocol", b"bearer.x"), (b"sec-websocket-protocol", b"chat")]
    credentials = taken(scope(headers, b"", ["chat"]))
    assert credentials.tokens == ("x",)
    assert credentials.bearer_subprotocol is None


def test_repr_hides() -> None:
    """Credentials that are printed by accident show no token."""
    assert "secret" not in repr(Credentials(("secret",), "bearer.secret", ("secret",), True))


@pytest.mark.parametrize(
    ("keys", "taken_key"),
    [([], None), (["key"], "key"), ([""], ""), (["key", "key"], None), (["key", "other"], None)],
)
def test_key_of_the_internal_api(keys: list[str], taken_key: str | None) -> None:
    """The key that services show is taken where there is one, and seen by nobody else."""
    asked = scope([(b"X-Internal-API-Key", key.encode()) for key in keys])
    take_credentials(asked)
    assert asked[INTERNAL_API_KEY_SCOPE_KEY] == taken_key
    assert asked["headers"] == [(b"X-Internal-API-Key", b"redacted") for _ in keys]


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0ZWFjaGVyLTEifQ.c2lnbmF0dXJl"
SECRET = "b3BhcXVlLXRpY2tldA"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Cookie", f"session={SECRET}"),
        ("Proxy-Authorization", f"Basic {SECRET}"),
        ("Referer", f"https://app.example.org/?a=b&token={JWT}&c=d"),
        ("Referer", f"https://app.example.org/?ticket={SECRET}"),
        ("Referer", f"https://app.example.org/?Access_Token={SECRET}#x"),
        ("Referer", f"https://app.example.org/?next=%2Fws%3Ftoken%3D{SECRET}%26a"),
        ("Referer", f"https://app.example.org/{JWT}/x"),
        ("X-Original-URL", f"/ws?token={SECRET}"),
        ("X-Forwarded-Uri", f"/ws?%54ick%65t={SECRET}"),
        ("X-Rewrite-URL", f"/ws?a=1;token={SECRET};b=2"),
        ("X-Anything", f"Bearer {JWT}"),
        ("X-Anything", JWT.replace(".", "%2E")),
        ("Sec-WebSocket-Protocol", f"chat, Bearer.{JWT}"),
        ("Sec-WebSocket-Protocol", f"jwt.{JWT}"),
        ("Host", JWT),
    ],
)
def test_secrets_in_other_headers(name: str, value: str) -> None:
    """What pages and proxies repeat of a URL with a token, or send in place of it, is not kept."""
    offered = value.split(", ") if name == "Sec-WebSocket-Protocol" else []
    asked = scope([(name.encode(), value.encode())], b"", offered)
    assert taken(asked).tokens == ()
    assert_clean(asked)


@pytest.mark.parametrize(
    "query",
    [
        f"Token={SECRET}",
        f"TICKET={SECRET}",
        f"%2574oken={SECRET}",
        f"a=1;token={SECRET};b",
        f"access_token={SECRET}",
        f"a={JWT}",
        JWT,
        f"url=%2Fws%3Fticket%3D{SECRET}",
        f"token%3D{SECRET}",
    ],
)
def test_secrets_under_other_names(query: str) -> None:
    """A parameter that is not quite ours is no credential, and yet nobody's to read."""
    asked = scope(query=query.encode())
    assert taken(asked) == Credentials()
    assert_clean(asked)


@pytest.mark.parametrize(
    "path",
    [f"/ws?token={SECRET}", f"/ws;ticket={SECRET}", f"/ws&token={SECRET}", f"/ws/{JWT}", f"/{JWT}"],
)
def test_secrets_in_the_path(path: str) -> None:
    """A client that escapes its question mark does not find its token in the log."""
    asked = {**scope(), "path": path, "raw_path": quote(path).encode()}
    take_credentials(asked)
    assert_clean(asked)
    assert asked["path"].startswith("/")


@pytest.mark.parametrize("path", ["/ws", "/internal/v1/users/token=5/history", "/eyes.of.eyJo/x=y"])
def test_other_paths_stay(path: str) -> None:
    """What only resembles a secret is left alone, since it may name somebody."""
    asked = {**scope(), "path": path, "raw_path": b"as it came"}
    take_credentials(asked)
    assert (asked["path"], asked["raw_path"]) == (path, b"as it came")


def assert_clean(asked: Scope) -> None:
    shown = repr(asked)
    assert SECRET not in shown
    assert not [part for part in JWT.split(".") if part in shown]


@given(value=st.binary(max_size=200))
def test_any_bytes_can_be_redacted(value: bytes) -> None:
    """Whatever a client sends, its request is looked through and answered."""
    asked = {**scope([(b"x", value)], value), "path": "/" + value.decode("latin1")}
    take_credentials(asked)
    assert isinstance(asked["path"], str)


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


@pytest.mark.parametrize(
    "part", ["eyJ", "eyJa.", "%25", "token", "token%25", "ticket=", "%3DeyJ", "ey"]
)
def test_long_headers_take_no_long_time(part: str) -> None:
    """A request that is made to be hard to look through does not hold up the others."""
    hard = (part * 200_000).encode()
    asked = scope([(b"x", hard)], hard)
    take_credentials(asked)
    assert JWT.encode() not in asked["query_string"]
