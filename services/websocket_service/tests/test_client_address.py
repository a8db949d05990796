"""On whose account a handshake goes."""

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.client_address import (
    TrustedProxies,
    client_address,
    limit_key,
    proxy_problem,
)
from services.websocket_service.forwarding import MAX_HOPS, ProxyHeader

PROXY = "10.0.0.1"
OUTER_PROXY = "10.0.0.2"
CLIENT = "203.0.113.7"
INVENTED = "192.0.2.66"
FOR, FORWARDED = ProxyHeader.X_FORWARDED_FOR, ProxyHeader.FORWARDED


def seen(
    *lines: str,
    peer: str | None = PROXY,
    header: ProxyHeader = FOR,
    sent_as: str | None = None,
    proxies: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8"),
) -> str | None:
    name = (sent_as or header).encode()
    address = client_address(
        peer,
        [(b"host", b"x"), *((name, line.encode()) for line in lines)],
        proxies=TrustedProxies(proxies),
        header=header,
    )
    return str(address) if address else None


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((CLIENT,), CLIENT),
        ((f"{INVENTED}, {CLIENT}",), CLIENT),
        ((INVENTED, CLIENT), CLIENT),
        ((f"{INVENTED}, {CLIENT}, {OUTER_PROXY}",), CLIENT),
        ((f"{INVENTED}, {CLIENT}", OUTER_PROXY), CLIENT),
        ((f"{OUTER_PROXY}, {CLIENT}",), CLIENT),
        ((f"{OUTER_PROXY}, {CLIENT},{OUTER_PROXY} , fd00::1",), CLIENT),
        ((f"\t{CLIENT} ",), CLIENT),
        ((f"{CLIENT}:4711",), CLIENT),
        ((f'"{CLIENT}"',), CLIENT),
        ((f"[::ffff:{CLIENT}]:4711",), CLIENT),
        ((f"::ffff:{CLIENT}, ::ffff:{OUTER_PROXY}",), CLIENT),
        (("2001:DB8::7",), "2001:db8::7"),
        (("[2001:db8::7]",), "2001:db8::7"),
        (("[2001:db8::7]:4711",), "2001:db8::7"),
        ((f'{INVENTED}", {CLIENT}',), CLIENT),
        ((f'"{INVENTED}', CLIENT), CLIENT),
        ((OUTER_PROXY,), OUTER_PROXY),
        ((f"10.0.0.9, {OUTER_PROXY}",), "10.0.0.9"),
    ],
)
def test_x_forwarded_for(lines: tuple[str, ...], address: str) -> None:
    """The last address that is no trusted proxy's is the client's, whatever stands before it."""
    assert seen(*lines) == address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((f"for={CLIENT}",), CLIENT),
        ((f'For="{CLIENT}:4711"',), CLIENT),
        ((f"for={CLIENT};proto=https;by=10.0.0.1",), CLIENT),
        ((f'proto=https; host="a.example, b" ;for={CLIENT}',), CLIENT),
        ((f"for={INVENTED}, for={CLIENT}",), CLIENT),
        ((f"for={INVENTED}", f"for={CLIENT}, for={OUTER_PROXY}"), CLIENT),
        (('for="[2001:db8::7]"',), "2001:db8::7"),
        (('for="[2001:DB8::7]:4711"',), "2001:db8::7"),
        (('for="[2001:db8::7]:_port"',), "2001:db8::7"),
        ((f'for="{INVENTED}, for={CLIENT}',), CLIENT),
        ((f'for="{INVENTED}', f"for={CLIENT}"), CLIENT),
        ((f'for="{INVENTED}\\", for={CLIENT}',), CLIENT),
        ((f'host="x, for={INVENTED}", for={CLIENT}',), CLIENT),
    ],
)
def test_forwarded(lines: tuple[str, ...], address: str) -> None:
    """The standard header says the same in its own way."""
    assert seen(*lines, header=FORWARDED) == address


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "unknown",
        "_hidden",
        "unix:",
        "localhost",
        "256.1.1.1",
        "203.0.113",
        "0203.0.113.7",
        "[203.0.113.7",
        "2001:db8::7::1",
        "[2001:db8::7]x",
        "fe80::1%eth0",
        "203.0.113.7 198.51.100.1",
        "203.0.113.7;198.51.100.1",
        "203.0.113.7:port",
        "\u0662\u0660\u0663.0.113.7",
        '"',
        "x" * 100_000,
        '"' * 99_999,
    ],
)
@pytest.mark.parametrize("header", list(ProxyHeader))
def test_an_entry_that_says_nothing_ends_the_walk(entry: str, header: ProxyHeader) -> None:
    """What stands before an entry that can't be read was vouched for by nobody."""
    prefix = "for=" if header is FORWARDED else ""
    line = f"{prefix}{INVENTED}, {prefix}{entry}"
    assert seen(line, header=header) == PROXY
    assert seen(f"{line}, {prefix}{OUTER_PROXY}", header=header) == OUTER_PROXY
    assert seen(f"{line}, {prefix}{CLIENT}", header=header) == CLIENT


@pytest.mark.parametrize(
    "entry",
    [
        f"for={CLIENT};for={INVENTED}",
        f"for={CLIENT};FOR={CLIENT}",
        f"by={INVENTED}",
        f"for ={CLIENT}",
        f"for= {CLIENT}",
        CLIENT,
        f"for={CLIENT} by={INVENTED}",
        f'for="{CLIENT}"x',
        f'for="{CLIENT}',
        f'for={CLIENT};host="a\\"b"',
        ";;;",
        "=",
    ],
)
def test_a_malformed_forwarded_entry_names_nobody(entry: str) -> None:
    """An entry that can be read in two ways is read in none."""
    assert seen(entry, header=FORWARDED) == PROXY


@pytest.mark.parametrize("header", list(ProxyHeader))
def test_the_word_of_strangers_is_not_taken(header: ProxyHeader) -> None:
    """A client that is no proxy can't put its handshakes on another's account."""
    line = f"for={INVENTED}" if header is FORWARDED else INVENTED
    assert seen(line, header=header, peer=CLIENT) == CLIENT
    assert seen(line, header=header, proxies=()) == PROXY
    assert seen(line, header=header, peer="2001:db8::1") == "2001:db8::1"


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Real-IP", "X_Forwarded_For", "True-Client-IP", "X-Forwarded-For2"]
)
def test_other_headers_are_not_looked_at(name: str) -> None:
    """A header which the proxy does not write, and so passes on, counts for nothing."""
    assert seen(INVENTED, sent_as=name) == PROXY
    assert seen(f"for={INVENTED}", sent_as=name) == PROXY


def test_names_of_headers_have_no_case() -> None:
    """Proxies spell the header in any way."""
    assert seen(CLIENT, sent_as="x-FORWARDED-for") == CLIENT


def test_without_the_header_it_is_the_proxy() -> None:
    """A health check of the proxy itself is on the proxy's own account."""
    assert seen() == PROXY


def test_the_walk_is_bounded() -> None:
    """A list longer than any chain of proxies is not read to its beginning."""
    assert seen(", ".join([CLIENT, *[OUTER_PROXY] * (MAX_HOPS - 1)])) == CLIENT
    assert seen(", ".join([CLIENT, *[OUTER_PROXY] * MAX_HOPS])) == OUTER_PROXY


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("::ffff:203.0.113.7", CLIENT),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", INVENTED),
        ("fd12::1", INVENTED),
        ("not an address", None),
        ("", None),
        (None, None),
    ],
)
def test_peers(peer: str | None, address: str | None) -> None:
    """IPv4 is IPv4 in whichever form the server has it; a peer without an address has none."""
    assert seen(INVENTED, peer=peer) == address


def test_proxy_on_a_unix_socket() -> None:
    """A proxy on the same host is trusted by its own name in the list."""
    assert seen(CLIENT, peer=None, proxies=("unix:",)) == CLIENT
    assert seen("unknown", peer=None, proxies=("unix:",)) is None
    assert seen(CLIENT, peer=PROXY, proxies=("unix:",)) == PROXY


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("10.0.0.0/8", None),
        ("10.0.0.1", None),
        ("fd00::/8", None),
        ("::1", None),
        ("::ffff:10.0.0.0/104", None),
        ("unix:", None),
        ("", "is no network"),
        ("10.0.0.1/8", "host bits set"),
        ("10.0.0.0/33", "is no network"),
        ("proxy.internal", "is no network"),
        ("*", "is no network"),
        ("0.0.0.0/0", "is everybody"),
        ("::/0", "is everybody"),
        ("::ffff:0:0/96", "is everybody"),
    ],
)
def test_unusable_networks_are_explained(entry: str, problem: str | None) -> None:
    """Whoever trusts what is no network, or everybody, is told so."""
    found = proxy_problem(entry)
    assert found == problem if problem is None else found is not None and problem in found


@pytest.mark.parametrize("entry", ["0.0.0.0/0", "::ffff:0:0/96", "10.0.0.1/8", "10.0.0.x", ""])
def test_unusable_networks_are_not_trusted(entry: str) -> None:
    """A mistake in the list makes nobody a proxy."""
    assert seen(INVENTED, proxies=(entry,)) == PROXY


def test_mapped_networks_are_ipv4() -> None:
    """A network that is written as IPv6 but is IPv4 holds IPv4 peers."""
    assert seen(CLIENT, proxies=("::ffff:10.0.0.0/104",)) == CLIENT


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (CLIENT, CLIENT),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
    ],
)
def test_limit_key(address: str, key: str) -> None:
    """An IPv4 address is limited by itself, one of IPv6 together with its network."""
    assert limit_key(ip_address(address)) == key


UNTRUSTED = st.ip_addresses().filter(
    lambda address: (
        not TrustedProxies(["10.0.0.0/8", "fd00::/8"]).trust(address)
        and (isinstance(address, IPv4Address) or not address.ipv4_mapped)
    )
)


@given(
    left=st.lists(st.text(st.characters(codec="latin1"), max_size=30), max_size=4),
    client=UNTRUSTED,
    hops=st.lists(st.ip_addresses(network="10.0.0.0/8").map(str), max_size=3),
    header=st.sampled_from(ProxyHeader),
)
def test_nothing_that_a_client_writes_hides_it(
    left: list[str],
    client: IPv4Address,
    hops: list[str],
    header: ProxyHeader,
) -> None:
    """Whatever a client puts into the header, its own address is found behind that."""
    chain = [str(client), *hops]
    if header is FORWARDED:
        chain = [f'for="[{hop}]"' if ":" in hop else f"for={hop}" for hop in chain]
    value = ", ".join([*left, *chain]).encode("latin1")
    found = client_address(
        PROXY,
        [(header.encode(), value)],
        proxies=TrustedProxies(["10.0.0.0/8"]),
        header=header,
    )
    assert found == client
