"""Old clients at the gateway's former WebSocket, and upgrades to anywhere else."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import websockets
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.collector import collector
from tests.functional.raw_websocket import raw_websocket
from tests.gateway_process import GATEWAY_HYPERCORN, GatewayProcess
from tests.service_process import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMER = "/ws/v1/status/client-7"
PATTERN = "/ws/v1/status/{client_id}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(redis_server: RedisServer) -> AsyncIterator[GatewayProcess]:
    """The gateway under plain Hypercorn, with an access log."""
    async with GatewayProcess(
        redis_url=redis_server.url,
        command=(*GATEWAY_HYPERCORN[:-1], "--access-logfile=-", "--bind"),
    ) as process:
        yield process


def check_gone(status: int, headers: dict[str, str], body: bytes) -> None:
    """What every old client is told."""
    error = json.loads(body)["error"]
    assert status == 410
    assert error["code"] == "RESOURCE_NOT_FOUND"
    assert error["correlation_id"] == headers["x-correlation-id"]
    assert error["details"] == {
        "migration_guide": "services/websocket_service/MIGRATION.md",
        "new_endpoint": "/ws",
    }
    assert "/ws" in error["message"]


async def test_a_websocket_client_is_told_where_to_go(gateway: GatewayProcess) -> None:
    """An old client that connects as it always did finds out where WebSockets are now."""
    with pytest.raises(InvalidStatus) as refused:
        await websockets.connect(
            f"ws://127.0.0.1:{gateway.port}{FORMER}?token={token()}",
            additional_headers={"Authorization": f"Bearer {token()}"},
            subprotocols=[Subprotocol("huleedu.notify.v1")],
            proxy=None,
        )
    response = refused.value.response
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    check_gone(response.status_code, headers, bytes(response.body or b""))


async def test_the_connection_ends_after_a_refused_upgrade(gateway: GatewayProcess) -> None:
    """Nothing stays open for a client that wanted a WebSocket."""
    async with raw_websocket(gateway.port, target=FORMER) as client:
        check_gone(client.status, client.headers, await client.body())
        await client.drained()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_whatever_is_asked_it_is_gone(gateway: GatewayProcess, method: str) -> None:
    """Any method gets the same answer, and nobody needs a token for it."""
    check_gone(*await gateway.http(FORMER, method=method))


async def test_head(gateway: GatewayProcess) -> None:
    """A HEAD says the same without a body."""
    status, _, body = await gateway.http(FORMER, method="HEAD")
    assert (status, body) == (410, b"")


async def test_pages_can_read_it(gateway: GatewayProcess) -> None:
    """A page that asks by other means than a WebSocket may read why it failed."""
    status, headers, body = await gateway.http(
        FORMER, headers={"Origin": "https://app.example.org"}
    )
    check_gone(status, headers, body)
    assert headers["access-control-allow-origin"]


async def test_an_upgrade_elsewhere_is_the_request_that_it_also_is(gateway: GatewayProcess) -> None:
    """An upgrade to a page of the gateway gets the page, and one to nowhere gets a 404."""
    async with raw_websocket(gateway.port, target="/healthz") as client:
        assert client.status == 200
        assert json.loads(await client.body())["status"] == "healthy"
        await client.drained()
    async with raw_websocket(gateway.port, target="/ws") as client:
        assert client.status == 404
        assert json.loads(await client.body())["error"]["code"] == "RESOURCE_NOT_FOUND"
        await client.drained()
    async with raw_websocket(gateway.port, target="/v1/batches/batch-1/status") as client:
        assert client.status == 401
        assert client.headers["www-authenticate"] == "Bearer"


async def test_old_clients_are_counted(gateway: GatewayProcess) -> None:
    """Operators see how many old clients are left, upgrades among them."""
    counter = f'gateway_http_requests_total{{endpoint="{PATTERN}",http_status="410",method="GET"}}'
    before = (await gateway.metrics()).get(counter, 0)
    await gateway.http(FORMER)
    async with raw_websocket(gateway.port, target=FORMER):
        pass
    assert (await gateway.metrics())[counter] == before + 2


async def test_tokens_of_old_clients_are_in_no_log(gateway: GatewayProcess) -> None:
    """Old clients send their token in the URL or a header; it is written down nowhere."""
    secret = token("teacher-of-old")
    target = f"{FORMER}?token={secret}"
    status, headers, body = await gateway.http(
        target, headers={"Authorization": f"Bearer {secret}", "Referer": "/page"}
    )
    check_gone(status, headers, body)
    async with raw_websocket(
        gateway.port, target=target, token=secret, headers=[("Cookie", f"token={secret}")]
    ) as client:
        check_gone(client.status, client.headers, await client.body())
        await client.drained()
    signature = secret.rpartition(".")[2]
    assert signature.encode() not in body
    assert FORMER in gateway.output()
    assert signature not in gateway.output()


async def test_tokens_of_old_clients_are_in_no_span(redis_server: RedisServer) -> None:
    """Nor does a tracing backend get it, whatever page the URL is of."""
    secret = token("teacher-of-old")
    async with collector() as spans:
        async with GatewayProcess(redis_url=redis_server.url, settings=spans.settings) as gateway:
            for path in (FORMER, "/healthz", "/nowhere"):
                await gateway.http(
                    f"{path}?token={secret}", headers={"Authorization": f"Bearer {secret}"}
                )
            async with raw_websocket(gateway.port, target=f"{FORMER}?token={secret}"):
                pass
        # All are sent before the process ends.
        assert len([span for span in spans.spans if span.kind == span.SPAN_KIND_SERVER]) >= 4
    assert secret.rpartition(".")[2] not in spans.text()
