"""One HTTP request for a key set. Needs httpx, the extra `jwks`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

import httpx

from huleedu_service_libs.auth.key_set import UnusableKeySetError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["MAX_KEY_SET_BYTES", "KeySetFetcher"]

MAX_KEY_SET_BYTES: Final = 262_144
"""64 RSA keys of 8,192 bits have 100 kB; with certificates beside them it may be more."""

_OK: Final = 200


class KeySetFetcher:
    """Asks `url` for its document, each time on a connection of its own; an async context manager.

    `timeout_s` is for all of one request.
    A credential in the URL goes into a header and is left out of what httpx logs.

    Raises ValueError for a URL that httpx does not understand, and OSError if the certificates that
    the environment names (SSL_CERT_FILE) cannot be read.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            raise ValueError("it is no address") from None
        credential = (address.username, address.password)
        self._timeout_s = timeout_s
        self._url = address.copy_with(username=None, password=None)
        self._client = httpx.AsyncClient(
            auth=credential if any(credential) else None,
            follow_redirects=False,
            # There is one request in minutes: by then the server has closed the connection, or its
            # name stands for another address.
            limits=httpx.Limits(max_keepalive_connections=0),
            # Its timeouts are for each read: a server that sends a byte now and then would meet
            # them for ever.
            timeout=httpx.Timeout(None),
            headers={
                "Accept": "application/jwk-set+json, application/json",
                # Nothing is unpacked, so that what comes is as large as it is.
                "Accept-Encoding": "identity",
            },
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(exc_type, exc, traceback)

    async def fetch(self) -> bytes:
        """The document as it came.

        Raises UnusableKeySetError for every way in which none came; the text has no address.
        """
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", self._url) as response,
            ):
                return await _body(response)
        except httpx.ConnectError:
            why = "it cannot be reached"
        except TimeoutError:
            why = "it does not answer in time"
        # UnicodeError: a name that cannot be looked up.
        except (httpx.HTTPError, UnicodeError) as error:
            why = f"the request failed: {type(error).__name__}"
        raise UnusableKeySetError(why)


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != _OK:
        raise UnusableKeySetError(f"it answered with status {response.status_code}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnusableKeySetError("it answered with compressed content")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_KEY_SET_BYTES:
            raise UnusableKeySetError(f"it answered with more than {MAX_KEY_SET_BYTES} bytes")
    return bytes(body)
