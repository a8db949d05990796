"""Which pages may connect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.origins import AllowedOrigins, origin_problem

APP = "https://app.example.org"
EVERYWHERE = "https://*.example.org"


def allows(listed: list[str], origin: str | None) -> bool:
    return AllowedOrigins(listed, allow_missing=False).allow(origin)


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        ([APP], APP),
        ([APP], "HTTPS://App.Example.ORG"),
        ([APP], f"{APP}:443"),
        ([f"{APP}:443"], APP),
        ([f"{APP}/"], APP),
        (["HTTPS://App.Example.Org"], APP),
        (["https://other.example.org", APP], APP),
        (["http://app.example.org:80"], "http://app.example.org"),
        (["https://app.example.org:8443"], "https://app.example.org:8443"),
        (["http://localhost:3000"], "http://localhost:3000"),
        (["http://my_pc:3000"], "http://my_pc:3000"),
        (["https://192.0.2.1"], "https://192.0.2.1"),
        (["https://[2001:DB8:0::1]:8443"], "https://[2001:db8::1]:8443"),
        (["https://xn--bcher-kva.example"], "https://xn--bcher-kva.example"),
        (["capacitor://localhost"], "capacitor://localhost"),
        (["chrome-extension://abcdefgh"], "chrome-extension://abcdefgh"),
        ([EVERYWHERE], APP),
        ([EVERYWHERE], "https://a.b.c.example.org"),
        (["https://*.example.org:8443"], "https://app.example.org:8443"),
        (["http://*.localhost:3000"], "http://school.localhost:3000"),
        (["https://*.example.org:443"], APP),
        (["*"], "https://anywhere.example"),
        (["*", APP], "https://anywhere.example"),
        ([], "https://anywhere.example"),
        ([], "http://localhost:3000"),
    ],
)
def test_listed_pages_are_let_in(listed: list[str], origin: str) -> None:
    """A page is let in if its scheme, host and port are listed, or nothing is."""
    assert allows(listed, origin)


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        ([APP], f"{APP}:8443"),
        ([APP], f"{APP}:80"),
        ([APP], "http://app.example.org"),
        ([APP], "https://evil-app.example.org"),
        ([APP], f"{APP}.evil.example"),
        ([APP], "https://example.org"),
        ([APP], "https://www.app.example.org"),
        (["http://app.example.org:443"], "http://app.example.org"),
        ([EVERYWHERE], "https://example.org"),
        ([EVERYWHERE], "https://evilexample.org"),
        ([EVERYWHERE], "https://app.example.org.evil.example"),
        ([EVERYWHERE], "http://app.example.org"),
        ([EVERYWHERE], "https://app.example.org:8443"),
        ([EVERYWHERE], "https://*.example.org"),
        ([EVERYWHERE], "https://.example.org"),
        ([EVERYWHERE], "https://a..example.org"),
        ([EVERYWHERE], "https://evil.example/.example.org"),
        ([EVERYWHERE], "https://evil.example?.example.org"),
        ([EVERYWHERE], "https://evil.example#.example.org"),
        ([EVERYWHERE], "https://evil.example@app.example.org"),
        ([EVERYWHERE], "https://evil.example\\.example.org"),
        ([EVERYWHERE], f"https://{'a' * 250}.example.org"),
        (["https://192.0.2.1"], "https://192.0.2.01"),
    ],
)
def test_other_pages_are_refused(listed: list[str], origin: str) -> None:
    """A page that is not listed is refused, however much it looks like one that is."""
    assert not allows(listed, origin)


@pytest.mark.parametrize("listed", [[], ["*"], [APP], [EVERYWHERE], ["null"]])
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "NULL",
        "",
        "*",
        "app.example.org",
        "https://",
        "https:///",
        "file://",
        "://app.example.org",
        f"{APP}/",
        f"{APP}/path",
        f"{APP}?",
        f"{APP}.",
        f"{APP}:",
        f"{APP}:65536",
        f"{APP}:+443",
        f"{APP}:\u0664\u0664\u0663",
        f" {APP}",
        f"{APP}\n",
        f"{APP}\x00",
        f"{APP}, {APP}",
        f"{APP} {APP}",
        f"{APP},https://evil.example",
        "https://user@app.example.org",
        "https://user:password@app.example.org",
        "https://b\u00fccher.example.org",
        "https://app.example.\u212arg",
        "https://%61pp.example.org",
        "https://[::1",
        "https://[fe80::1%25eth0]",
        "https://[1.2.3.4]",
        "https://999.0.0.1",
        "https://127.1",
        "https://0x7f000001",
    ],
)
def test_what_no_browser_sends_is_refused(listed: list[str], origin: str) -> None:
    """An origin that is opaque, malformed or several is refused even where any page may connect."""
    assert not allows(listed, origin)


@pytest.mark.parametrize("listed", [[], [APP], [EVERYWHERE]])
@pytest.mark.parametrize("allowed", [True, False])
def test_programs_have_no_origin(listed: list[str], allowed: bool) -> None:
    """Whether a client without an origin, which is no browser, may connect is a setting."""
    assert AllowedOrigins(listed, allow_missing=allowed).allow(None) is allowed


UNUSABLE = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("null", "sandboxed"),
    ("Null", "sandboxed"),
    ("app.example.org", "has no scheme"),
    ("localhost:3000", "has no scheme"),
    ("//app.example.org", "has no scheme"),
    ("*.example.org", "has no scheme"),
    (f"{APP}/app", "is no origin"),
    (f"{APP}//", "is no origin"),
    (f"{APP}?a=b", "is no origin"),
    (f" {APP}", "has no scheme"),
    (f"{APP} ", "is no origin"),
    (f"{APP}.", "is no origin"),
    (f"{APP},https://b.example.org", "is no origin"),
    ("https://user@app.example.org", "is no origin"),
    ("https://", "is no origin"),
    ("https://app.example.org:99999", "is no origin"),
    ("https://127.1", "is no origin"),
    ("https://b\u00fccher.example", "xn--"),
    ("wss://app.example.org", "page's origin"),
    ("https://*", "wrong place"),
    ("https://*:8443", "wrong place"),
    ("https://app*.example.org", "wrong place"),
    ("https://*app.example.org", "wrong place"),
    ("https://*.*.example.org", "is no origin"),
    ("https://app.*.org", "is no origin"),
    ("https://*.org", "all of org"),
    ("https://*.0.0.1", "is no origin"),
]


@pytest.mark.parametrize(("entry", "why"), UNUSABLE)
def test_an_unusable_entry_is_explained(entry: str, why: str) -> None:
    """Whoever lists what no page can have as its origin is told so."""
    assert why in (origin_problem(entry) or "")


@pytest.mark.parametrize(("entry", "_why"), UNUSABLE)
@pytest.mark.parametrize("origin", [APP, "https://example.org", "https://b.org", "null", "", "*"])
def test_an_unusable_entry_lets_nobody_in(entry: str, _why: str, origin: str) -> None:
    """A list of nothing but mistakes is not taken for a list that allows everybody."""
    assert not allows([entry], origin)


LABELS = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z")
HOSTS = st.lists(LABELS, min_size=2, max_size=4).map(".".join)
ORIGINS = st.builds(
    lambda scheme, host, port: f"{scheme}://{host}{port}",
    st.sampled_from(["http", "https", "capacitor"]),
    HOSTS,
    st.sampled_from(["", ":1", ":8443", ":65535"]),
)


@given(listed=st.lists(ORIGINS, min_size=1, max_size=4), other=ORIGINS)
def test_exactly_what_is_listed(listed: list[str], other: str) -> None:
    """All that is listed may connect, and nothing else."""
    assert not any(origin_problem(entry) for entry in listed)
    assert all(allows(listed, entry) for entry in listed)
    assert allows(listed, other) == (other in listed)


@given(host=HOSTS, below=LABELS, other=HOSTS)
def test_wildcard_is_for_subdomains_alone(host: str, below: str, other: str) -> None:
    """A wildcard stands for what is below its domain and for nothing beside it."""
    listed = [f"https://*.{host}"]
    assert allows(listed, f"https://{below}.{host}")
    assert not allows(listed, f"https://{host}")
    assert allows(listed, f"https://{other}") == other.endswith(f".{host}")


@given(text=st.text(max_size=40) | st.from_regex(r"https?://[^/]{0,20}(:\d*)?"))
def test_any_text_is_judged(text: str) -> None:
    """Nothing that a client writes or somebody lists breaks the check; null never gets in."""
    assert origin_problem(text) is None or not allows([text], text)
    assert not allows([text], "null")
    allows([], text)
