"""On whose account a handshake goes: the client's address, where proxies that we trust tell it.

1. The word of a peer that is no trusted proxy is not taken, nor is any header but the one that is
   configured: anybody can write those.
2. Each proxy appends the address of its own peer. So the list is read from its end, and the first
   address that is no trusted proxy's is the client's: what stands before it may be invented.
3. What can't be read ends the walk at the last address that could.
"""

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from services.websocket_service.forwarding import ProxyHeader, last_hops

Address = IPv4Address | IPv6Address

UNIX_PEERS: Final = "unix:"
_MAPPED_PREFIX_BITS: Final = 96
_NETWORK_BITS: Final = 64
_HOST_BITS: Final = 64


class TrustedProxies:
    """The networks of the proxies in front of the service, as CIDRs or addresses.

    `unix:` stands for peers on a Unix-domain socket, which have no address. An entry that has a
    `proxy_problem` stands for nobody.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        usable = [entry for entry in entries if proxy_problem(entry) is None]
        self._unix = UNIX_PEERS in usable
        self._networks = [_network(entry) for entry in usable if entry != UNIX_PEERS]

    def trust(self, address: Address | None) -> bool:
        """True for a proxy's address; None is a peer's that has none."""
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


def proxy_problem(entry: str) -> str | None:
    """Why an entry of `WEBSOCKET_TRUSTED_PROXIES` can't be used; None where it can."""
    if entry == UNIX_PEERS:
        return None
    try:
        network = _network(entry)
    except ValueError:
        return _malformation(entry)
    if network.prefixlen == 0:
        return "is everybody: then every client says itself which address it has"
    return None


def client_address(
    peer: str | None,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    proxies: TrustedProxies,
    header: ProxyHeader,
) -> Address | None:
    """The client's address, IPv4 where it is mapped into IPv6; None where there is none to know.

    `peer` is the other end of the transport, None on a Unix-domain socket; `headers` are those of
    the ASGI scope.
    """
    if peer is None:
        address = None
    else:
        address = parse_address(peer)
        if address is None:
            return None
    if not proxies.trust(address):
        return address
    for hop in last_hops(headers, header):
        forwarded = parse_address(hop) if hop else None
        if forwarded is None:
            return address
        address = forwarded
        if not proxies.trust(address):
            return address
    return address


def parse_address(text: str) -> Address | None:
    """The address without its zone; None where the text is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def limit_key(address: Address) -> str:
    """What shares one limit: an IPv4 address, and of IPv6 a network of 64 bits.

    One host is given a /64 as a rule and can use all of its addresses.
    """
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)}/{_NETWORK_BITS}"


def _malformation(entry: str) -> str:
    try:
        meant = ip_network(entry, strict=False)
    except ValueError:
        return "is no network: write an address or a CIDR, as in 10.0.0.0/8"
    return f"has host bits set: write {meant}"


def _network(entry: str) -> IPv4Network | IPv6Network:
    network = ip_network(entry)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_PREFIX_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX_BITS))
    return network
