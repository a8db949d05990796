"""Who is turned away before it is known who it is, and who for what is known of them."""

from services.websocket_service.tests.fakes import CloseFrame, MemoryClient, Service


async def refused(service: Service, client: MemoryClient) -> CloseFrame:
    """How the service has closed, with nothing of the client's left."""
    close = await client.closed()
    assert service.hub.statistics().opened == {}
    service.assert_nothing_left()
    return close


async def test_too_many_at_once() -> None:
    """A storm beyond what the process takes in is asked to come back a little later."""
    service = Service(handshake_burst=0)
    close = await refused(service, service.begin(MemoryClient(), service.issuer.token("a")))
    assert close.code == 1013
    assert "Too many handshakes".startswith(close.fields["message"])
    assert 1_000 <= close.fields["retry_after_ms"] <= 3_000
    assert service.hub.statistics().refused == {"handshake_rate": 1}


async def test_too_many_from_one_address() -> None:
    """An address that asks too often is told so, whoever asks, and others are let in."""
    service = Service(address_burst=1)
    first = service.begin(MemoryClient(), "made up", address="192.0.2.1")
    assert (await first.closed()).code == 1008
    second = service.begin(MemoryClient(), service.issuer.token("a"), address="192.0.2.1")
    close = await refused(service, second)
    assert (close.code, close.fields["error_code"]) == (4009, "RATE_LIMIT")
    assert service.hub.statistics().refused["address_rate"] == 1
    other = service.begin(MemoryClient(), service.issuer.token("a"), address="192.0.2.2")
    await other.connected()
    await service.assert_live("a", other)
    await service.leave(other)


async def test_flood_of_one_address_is_not_on_the_account_of_all() -> None:
    """What one address is refused is not taken from what the process admits."""
    service = Service(address_burst=1, handshake_burst=2)
    for _ in range(5):
        flooding = service.begin(MemoryClient(), "made up", address="192.0.2.1")
        await flooding.closed()
    other = service.begin(MemoryClient(), service.issuer.token("a"), address="192.0.2.2")
    await other.connected()
    await service.leave(other)


async def test_lapsing_places() -> None:
    """A user whose other connections died with their process may come back a little later."""
    service = Service()
    service.leases.held["a"] |= {"1", "2", "3"}
    service.leases.lapsing |= {"2"}
    client = service.begin(MemoryClient(), service.issuer.token("a"))
    close = await client.closed()
    assert close.code == 1013
    assert close.fields["retry_after_ms"] > 0
    assert service.leases.held["a"] == {"1", "2", "3"}


async def test_place_is_given_back() -> None:
    """A user who closes a tab may open another one."""
    service = Service()
    clients = [await service.connect("a") for _ in range(3)]
    clients[0].leave()
    await clients[0].ended()
    clients[0] = await service.connect("a")
    await service.leave(*clients)


async def test_leases_that_are_away() -> None:
    """While nobody can count a user's connections, nobody is admitted."""
    service = Service()
    service.leases.available = False
    close = await refused(service, service.begin(MemoryClient(), service.issuer.token("a")))
    assert (close.code, close.fields["error_code"]) == (1013, "CONNECTION_ERROR")


async def test_revoked_token() -> None:
    """A revoked token opens nothing, and takes none of its user's places meanwhile."""
    service = Service()
    service.revocations.token_ids.add("revoked")
    client = service.begin(MemoryClient(), service.issuer.token("a", token_id="revoked"))
    close = await refused(service, client)
    assert (close.code, close.fields["error_code"]) == (1008, "AUTHENTICATION_ERROR")
    assert not service.backplane.asked.is_set()
    assert service.hub.statistics().refused == {"token_revoked": 1}


async def test_token_revoked_in_mid_handshake() -> None:
    """A token that is revoked while its handshake waits for Redis opens nothing either."""
    service = Service()
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a", token_id="revoked"), v1=True)
    await service.backplane.asked.wait()
    service.revocations.token_ids.add("revoked")
    service.backplane.acknowledges.set()
    assert (await client.frame())["error"]["details"] == {"reason": "token_revoked"}
    assert (await refused(service, client)).code == 1008


async def test_revocations_that_are_not_known() -> None:
    """A process that can't know what is revoked admits nobody."""
    service = Service()
    service.revocations.is_current = False
    close = await refused(service, service.begin(MemoryClient(), service.issuer.token("a")))
    assert close.code == 1013


async def test_ticket_is_good_once() -> None:
    """A ticket opens one connection, which ends with the token that it stands for."""
    service = Service()
    claims = service.issuer.claims(service.issuer.token("a"))
    ticket, _ = await service.tickets.issue(claims)
    first = service.begin(MemoryClient(), ticket=ticket)
    await first.connected()
    (connection,) = service.hub.connections()
    assert connection.claims == claims
    second = service.begin(MemoryClient(), ticket=ticket, v1=True)
    assert (await second.frame())["error"]["details"] == {"reason": "invalid_ticket"}
    assert (await second.closed()).code == 1008
    assert service.hub.statistics().token_checks == {"valid": 1, "invalid_ticket": 1}
    await service.leave(first)
