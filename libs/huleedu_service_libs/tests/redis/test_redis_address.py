"""What a URL may say of where Redis is."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.redis_address import (
    SCHEMES,
    Credentials,
    Endpoint,
    RedisAddress,
    Topology,
)

HERE = (Endpoint("localhost", 6379),)
ONE, OTHER = Endpoint("one", 26379), Endpoint("other", 7)
TEACHER = Credentials("teacher", "p@ss/word")
CA = "ssl_ca_certs=ca.pem"

ADDRESSES = {
    "redis://": RedisAddress(Topology.SERVER, HERE),
    "redis://localhost": RedisAddress(Topology.SERVER, HERE),
    "REDIS://localhost:6379/": RedisAddress(Topology.SERVER, HERE),
    "redis://other:7/3": RedisAddress(Topology.SERVER, (OTHER,), db=3),
    "redis://other:7/3?db=4": RedisAddress(Topology.SERVER, (OTHER,), db=4),
    "redis://[::1]:7": RedisAddress(Topology.SERVER, (Endpoint("::1", 7),)),
    "redis://[fe80::1%25eth0]": RedisAddress(Topology.SERVER, (Endpoint("fe80::1%eth0", 6379),)),
    "redis://teacher:p%40ss%2Fword@other:7": RedisAddress(
        Topology.SERVER, (OTHER,), credentials=TEACHER
    ),
    "redis://teacher:p@ss%2Fword@other:7": RedisAddress(
        Topology.SERVER, (OTHER,), credentials=TEACHER
    ),
    "redis://other:7?username=teacher&password=p%40ss/word": RedisAddress(
        Topology.SERVER, (OTHER,), credentials=TEACHER
    ),
    "redis://:secret@": RedisAddress(
        Topology.SERVER, HERE, credentials=Credentials(None, "secret")
    ),
    # What a client of another kind may want is left to it.
    "redis://?socket_timeout=1&retry_on_timeout=yes&protocol=3": RedisAddress(
        Topology.SERVER, HERE
    ),
    "redis://?health_check_interval=9": RedisAddress(
        Topology.SERVER, HERE, options={"health_check_interval": 9}
    ),
    f"rediss://other:7?{CA}": RedisAddress(
        Topology.SERVER, (OTHER,), uses_tls=True, options={"ssl_ca_certs": "ca.pem"}
    ),
    "unix:///tmp/a%20b.sock?db=2": RedisAddress(Topology.SERVER, path="/tmp/a b.sock", db=2),
    "unix://teacher:p%40ss%2Fword@/r.sock": RedisAddress(
        Topology.SERVER, path="/r.sock", credentials=TEACHER
    ),
    "redis+sentinel://one,other:7/the%20master": RedisAddress(
        Topology.SENTINEL, (ONE, OTHER), service_name="the master"
    ),
    "redis+sentinel://teacher:p%40ss%2Fword@one/m/5": RedisAddress(
        Topology.SENTINEL, (ONE,), service_name="m", db=5, credentials=TEACHER
    ),
    "redis+sentinel://one/m?sentinel_username=teacher&sentinel_password=p%40ss/word": RedisAddress(
        Topology.SENTINEL, (ONE,), service_name="m", sentinel_credentials=TEACHER
    ),
    f"rediss+sentinel://[::1],other:7/m?{CA}": RedisAddress(
        Topology.SENTINEL,
        (Endpoint("::1", 26379), OTHER),
        service_name="m",
        uses_tls=True,
        options={"ssl_ca_certs": "ca.pem"},
    ),
    "redis+cluster://teacher:p%40ss%2Fword@localhost,other:7,[::1]:7/0": RedisAddress(
        Topology.CLUSTER, (*HERE, OTHER, Endpoint("::1", 7)), credentials=TEACHER
    ),
    "rediss+cluster://localhost?ssl_check_hostname=no": RedisAddress(
        Topology.CLUSTER, HERE, uses_tls=True, options={"ssl_check_hostname": False}
    ),
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_what_a_url_means(url: str) -> None:
    """Each form says where Redis is and who we are."""
    assert RedisAddress.parse(url) == ADDRESSES[url]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "expected redis://, rediss://, unix://"),
        ("localhost:6379", "expected redis://"),
        ("http://localhost", "or rediss+cluster://"),
        ("redis+elsewhere://localhost", "expected redis://"),
        ("unix+cluster:///r.sock", "expected redis://"),
        ("redis://one:port", "a port from 1 to 65535"),
        ("redis://one:0", "a port from 1 to 65535"),
        ("redis://one:65536", "a port from 1 to 65535"),
        ("redis://one:²", "a port from 1 to 65535"),
        ("redis://::1", "an IPv6 address in brackets"),
        ("redis://[one]", "an IPv6 address in the brackets"),
        ("redis://[::1", "an IPv6 address in the brackets"),
        ("redis://[::1]7", "a port after the brackets"),
        ("redis://one/zero", "the number of a database"),
        ("redis://one/0/1", "the number of a database"),
        ("redis://one?db=zero", "'db'"),
        ("redis://one,other", "several hosts are for redis+sentinel:// or redis+cluster://"),
        ("redis://one?ssl_ca_cert=ca.pem", "ssl_ca_certs"),
        ("redis://one?ssl_ca_certs=ca.pem", "are for rediss://"),
        ("rediss://one?ssl_cert_reqs=maybe", "none, optional or required"),
        ("redis://one?password=se#cret", "a # has to be percent-encoded"),
        ("redis://one/0#cret", "percent-encoded"),
        ("redis://one?sentinel_password=x", "are for redis+sentinel://"),
        ("unix://", "the absolute path of a socket"),
        ("unix://r.sock", "the absolute path of a socket"),
        ("unix://host/r.sock", "the absolute path of a socket"),
        ("redis+sentinel://one,other", "the name of the master"),
        ("redis+sentinel://one/", "the name of the master"),
        ("redis+sentinel://one/m/zero", "the number of a database"),
        ("redis+sentinel://one,,other/m", "a host is missing"),
        ("redis+cluster://", "a host is missing"),
        ("redis+cluster://one/1", "no other database than 0"),
        ("redis+cluster://one?db=1", "no other database than 0"),
    ],
)
def test_what_is_no_address(url: str, expected: str) -> None:
    """The error says what is expected there."""
    with pytest.raises(ValueError, match="not a Redis URL") as refused:
        RedisAddress.parse(url)
    assert expected in str(refused.value)


SECRET = "hunter2"
PUNCTUATION = st.text("@:/?#[],&=%+ 0", max_size=3)
URLS = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(SCHEMES),
    st.sampled_from(["", "user:", ":", "?password=", "host/m?sentinel_password="]),
    PUNCTUATION,
    st.just(SECRET),
    PUNCTUATION,
    st.sampled_from(["", "@host:1", "@one,other/m", "&db=1", "@/r.sock"]),
)


@given(URLS)
def test_no_secret_is_told(url: str) -> None:
    """However a password was put in, an error does not quote it, nor does a log that names it."""
    try:
        address = RedisAddress.parse(url)
    except ValueError as error:
        assert SECRET not in str(error)  # noqa: PT017 - not every one of them is refused
    else:
        secrets = (address.credentials.password, address.sentinel_credentials.password)
        if any(SECRET in secret for secret in secrets if secret):
            assert SECRET not in str(address) + repr(address)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:secret@other:7/1", "other:7"),
        ("redis://[::1]", "[::1]:6379"),
        ("unix://:secret@/r.sock", "/r.sock"),
        ("redis+sentinel://u:secret@one,other:7/m", "m of the sentinels one:26379, other:7"),
        ("redis+cluster://u:secret@localhost,[::1]:7", "the Cluster of localhost:6379, [::1]:7"),
    ],
)
def test_what_logs_show(url: str, shown: str) -> None:
    """A line of a log names the place."""
    assert str(RedisAddress.parse(url)) == shown


def test_tls_context() -> None:
    """The parameters of TLS hold for other connections too."""
    assert RedisAddress.parse("redis://localhost").tls_context() is None
    context = RedisAddress.parse("rediss://localhost?ssl_cert_reqs=none").tls_context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_NONE
