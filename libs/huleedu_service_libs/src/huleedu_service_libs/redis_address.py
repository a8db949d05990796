"""Where Redis is, as a URL says it: one server, a Sentinel set or a Cluster."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn, Self
from urllib.parse import unquote

from redis.asyncio.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

DEFAULT_HOST: Final = "localhost"
DEFAULT_PORT: Final = 6379
DEFAULT_SENTINEL_PORT: Final = 26379
MAX_PORT: Final = 65535

SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)
_TLS_PREFIX: Final = "ssl_"
# `RedisClient` decides these, for reasons of its own; a URL that other clients share may have them.
_IGNORED_PARAMETERS: Final = frozenset(
    {
        "legacy_responses",
        "max_connections",
        "protocol",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_timeout",
        "timeout",
    }
)
# redis-py has a list of those that it converts; it takes the others as text.
_PARAMETERS: Final = frozenset(URL_QUERY_ARGUMENT_PARSERS) | {
    "password",
    "sentinel_password",
    "sentinel_username",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_password",
    "username",
}


class Topology(StrEnum):
    """What stands behind an address."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Endpoint(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are for a server; nobody in particular without a password."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed URL; neither `str()` nor `repr()` has a password in it.

    - `redis://[user:password@][host][:6379][/db]`
    - `unix://[user:password@]/path/to/socket[?db=1]`
    - `redis+sentinel://[user:password@]host[:26379],host…/service_name[/db]`: the sentinels' hosts
      and the servers' credentials; those of the sentinels are parameters, `sentinel_username` and
      `sentinel_password`
    - `redis+cluster://[user:password@]host[:6379],host…`: any nodes of it

    `rediss` in place of `redis` means TLS, with the sentinels too, and redis-py's parameters for
    it, for example `?ssl_ca_certs=ca.pem`. `username` and `password` may be parameters too.
    """

    topology: Topology
    endpoints: tuple[Endpoint, ...] = ()
    """The server, or the sentinels, or nodes of the Cluster; none for a Unix socket."""
    path: str = ""
    """Of a Unix socket."""
    service_name: str = ""
    """What the sentinels call the master."""
    db: int = 0
    credentials: Credentials = Credentials()
    sentinel_credentials: Credentials = Credentials()
    uses_tls: bool = False
    options: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, hash=False
    )
    """Further connection arguments of redis-py, as it names them."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError that says what is expected and quotes nothing of the URL.

        One unescaped character is enough to make any part of a URL a piece of its password.
        """
        scheme, separator, rest = url.partition("://")
        if f"{scheme.lower()}{separator}" not in SCHEMES:
            _refuse(f"expected {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}")
        base, _, kind = scheme.lower().partition("+")
        topology = Topology(kind or Topology.SERVER)
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        userinfo, _, hosts = authority.rpartition("@")
        username, _, password = userinfo.partition(":")
        options = _parse_query(query)
        credentials = Credentials(
            unquote(username) or options.pop("username", None),
            unquote(password) or options.pop("password", None),
        )
        sentinel_credentials = Credentials(
            options.pop("sentinel_username", None), options.pop("sentinel_password", None)
        )
        if sentinel_credentials != Credentials() and topology is not Topology.SENTINEL:
            _refuse("sentinel_username and sentinel_password are for redis+sentinel://")
        uses_tls = base == "rediss"
        _check_tls(options, uses_tls=uses_tls)

        service_name = database = ""
        if topology is Topology.SENTINEL:
            service_name, _, database = path.partition("/")
            if not service_name:
                _refuse("expected the name of the master after the sentinels: host,host/name")
        elif base != "unix":
            database = path
        db = options.pop("db", None)
        if db is None:
            db = _parse_database(database)
        if topology is Topology.CLUSTER and db != 0:
            _refuse("a Cluster has no other database than 0")
        if base == "unix" and (hosts or not path):
            _refuse("expected the absolute path of a socket after unix://")

        return cls(
            topology=topology,
            endpoints=() if base == "unix" else _parse_hosts(hosts, topology),
            path=slash + unquote(path) if base == "unix" else "",
            service_name=unquote(service_name),
            db=db,
            credentials=credentials,
            sentinel_credentials=sentinel_credentials,
            uses_tls=uses_tls,
            options=MappingProxyType(options),
        )

    def __str__(self) -> str:
        hosts = ", ".join(map(str, self.endpoints))
        match self.topology:
            case Topology.SENTINEL:
                return f"{self.service_name} of the sentinels {hosts}"
            case Topology.CLUSTER:
                return f"the Cluster of {hosts}"
            case _:
                return self.path or hosts

    @property
    def is_unix_socket(self) -> bool:
        """Whether `path` says where Redis is."""
        return bool(self.path)

    def connection_class(self) -> type[AbstractConnection]:
        """redis-py's kind of connection to a server."""
        if self.is_unix_socket:
            return UnixDomainSocketConnection
        return SSLConnection if self.uses_tls else Connection

    def connection_arguments(self, endpoint: Endpoint | None = None) -> dict[str, Any]:
        """What redis-py's connection to one of the servers needs; replies are texts.

        No time limit is set: a whole call has one, see `redis_deadlines`.
        """
        return {**self._arguments(endpoint), **_as_arguments(self.credentials), "db": self.db}

    def connection(self, endpoint: Endpoint, *, to_sentinel: bool = False) -> AbstractConnection:
        """A connection outside of any pool; it is not open yet."""
        if not to_sentinel:
            return self.connection_class()(**self.connection_arguments(endpoint))
        arguments = self._arguments(endpoint) | _as_arguments(self.sentinel_credentials)
        return self.connection_class()(**arguments)

    def _arguments(self, endpoint: Endpoint | None) -> dict[str, Any]:
        place: dict[str, Any] = {}
        if self.is_unix_socket:
            place = {"path": self.path}
        elif endpoint is not None:
            place = {"host": endpoint.host, "port": endpoint.port}
        return {
            **self.options,
            **place,
            "decode_responses": True,
            "socket_timeout": None,
            "socket_connect_timeout": None,
            # With RESP3, redis-py 8 expects push messages on idle connections and therefore no
            # longer looks whether one was closed: after a restart of Redis the first command
            # of each pooled connection would fail.
            "protocol": 2,
            # A retry after a timeout or a lost connection can publish twice.
            "retry": Retry(NoBackoff(), 0),
        }

    def tls_context(self) -> ssl.SSLContext | None:
        """For other connections than redis-py's; reads the certificates. None without TLS."""
        if not self.uses_tls:
            return None
        return SSLConnection(**_tls_options(self.options)).ssl_context.get()


def _as_arguments(credentials: Credentials) -> dict[str, Any]:
    return {"username": credentials.username, "password": credentials.password}


def _tls_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith(_TLS_PREFIX)}


def _parse_query(query: str) -> dict[str, Any]:
    if "#" in query:
        _refuse("a # has to be percent-encoded")
    try:
        options: dict[str, Any] = {**parse_url(f"redis://?{query}")}
    except ValueError as error:
        # It names a parameter that redis-py knows, and not the value.
        _refuse(str(error).removesuffix("."))
    if not options.keys() <= _PARAMETERS:
        _refuse(f"its parameters can be {', '.join(sorted(_PARAMETERS - _IGNORED_PARAMETERS))}")
    return {name: value for name, value in options.items() if name not in _IGNORED_PARAMETERS}


def _check_tls(options: Mapping[str, Any], *, uses_tls: bool) -> None:
    tls = _tls_options(options)
    if tls and not uses_tls:
        _refuse("parameters that begin with ssl_ are for rediss://")
    try:
        SSLConnection(**tls)
    except RedisError:
        _refuse("ssl_cert_reqs can be none, optional or required")


def _parse_database(text: str) -> int:
    text = text.strip("/")
    if text and not (text.isascii() and text.isdigit()):
        _refuse("expected the number of a database at the end of the path")
    return int(text or 0)


def _parse_hosts(text: str, topology: Topology) -> tuple[Endpoint, ...]:
    default_port = DEFAULT_SENTINEL_PORT if topology is Topology.SENTINEL else DEFAULT_PORT
    if topology is Topology.SERVER:
        if "," in text:
            _refuse("several hosts are for redis+sentinel:// or redis+cluster://")
        text = text or DEFAULT_HOST
    return tuple(_parse_host(host, default_port) for host in text.split(","))


def _parse_host(text: str, default_port: int) -> Endpoint:
    if text.startswith("["):
        host, bracket, port = text.removeprefix("[").partition("]")
        try:
            IPv6Address(host if bracket else "")
        except ValueError:
            _refuse("expected an IPv6 address in the brackets")
        if port and not port.startswith(":"):
            _refuse("expected a port after the brackets")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        _refuse(
            f"expected a port from 1 to {MAX_PORT} after the host, or an IPv6 address in brackets"
        )
    if not host:
        _refuse("a host is missing")
    return Endpoint(unquote(host), int(port or default_port))


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"not a Redis URL: {what} (special characters of a password have to be percent-encoded)"
    ) from None
