"""Where a key set is fetched from."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

__all__ = ["is_exposed_url", "is_web_address"]


def is_web_address(url: str) -> bool:
    """Whether it is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        # To read a port that is none raises ValueError.
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and has_port
        and url.isprintable()
        and " " not in url
    )


def is_exposed_url(url: str) -> bool:
    """Whether others can change what comes from there: plain http, and not from this host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        return parts.scheme != "https" and host != "localhost" and not ip_address(host).is_loopback
    except ValueError:  # a name, or no URL at all
        return True
