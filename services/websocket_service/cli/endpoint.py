"""Where `tail` connects, and with which credential."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from services.websocket_service.cli.discovery import RunningDev
from services.websocket_service.cli.minting import mint
from services.websocket_service.cli.target import (
    SigningKey,
    find_dev,
    running_devs,
    service_url,
    signing_key,
    signs_with_dev,
)

DEFAULT_USER = "teacher-1"
_TOKEN_LIFETIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect (no credential in the URL), and with what."""

    url: str
    credential: str = field(repr=False)
    is_renewable: bool = False
    """True where each attempt has a fresh token."""

    def url_after(self, cursor: str | None) -> str:
        """The URL that resumes from `cursor`; with None as it is."""
        if cursor is None:
            return self.url
        parts = urlsplit(self.url)
        query = [(name, value) for name, value in _query(parts.query) if name != "cursor"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("cursor", cursor)])))


Locate = Callable[[], Endpoint | None]
"""Called before each attempt; None while the service that was found is not running."""


def locate_service(
    *, user: str | None, token: str | None, url: str | None, dev_port: int | None
) -> Locate:
    """What the command line names, completed from the environment or a running `dev`.

    A URL as `dev` prints it, with its token in it, is taken apart. If nothing but a `dev` tells
    where to go, its next start counts as the same service.

    Raises CliError if there is no secret to make a token with.
    """
    if url is None and token is None and signs_with_dev(dev_port):
        dev = find_dev(dev_port)
        if dev is not None:
            return _FollowedDev(dev, user or DEFAULT_USER, wanted_port=dev_port).locate
    chosen_url, token_of_url = _without_token(url or service_url(dev_port))
    if token is None and user is None:
        token = token_of_url
    if token is not None:
        endpoint = Endpoint(chosen_url, token)
        return lambda: endpoint
    key = signing_key(dev_port)
    return lambda: _signed(chosen_url, key, user or DEFAULT_USER)


class _FollowedDev:
    """A `dev` through its restarts, which bring another secret and perhaps another port."""

    def __init__(self, dev: RunningDev, user: str, *, wanted_port: int | None) -> None:
        self._port = dev.port
        self._user = user
        self._wanted_port = wanted_port

    def locate(self) -> Endpoint | None:
        running = running_devs()
        candidates = [dev for dev in running if dev.port == self._port]
        if not candidates and self._wanted_port is None:
            candidates = running
        if not candidates:
            return None
        dev = candidates[0]
        self._port = dev.port
        return _signed(dev.url, SigningKey.of(dev), self._user)


def _signed(url: str, key: SigningKey, user: str) -> Endpoint:
    # A fresh token for each attempt: a tail may run for longer than one lives.
    return Endpoint(url, mint(key, user, _TOKEN_LIFETIME).token, is_renewable=True)


def _without_token(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    query = _query(parts.query)
    token = next((value for name, value in query if name == "token"), None)
    kept = urlencode([(name, value) for name, value in query if name != "token"])
    return urlunsplit(parts._replace(query=kept, fragment="")), token or None


def _query(text: str) -> list[tuple[str, str]]:
    return parse_qsl(text, keep_blank_values=True)
