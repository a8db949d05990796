"""The application as others test against it: in their process, with and without its lifespan."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from uuid import UUID

import httpx
import pytest
from dishka import Provider, Scope, provide
from fastapi import FastAPI
from pydantic import SecretStr

from huleedu_service_libs.testing.jwt_helpers import build_jwt_headers
from services.api_gateway_service.app import create_app
from services.api_gateway_service.config import Settings
from services.api_gateway_service.protocols import BatchStatus, BatchStatusProtocol
from services.api_gateway_service.status_mapping import PublicStatus

NOBODY = "127.0.0.1:1"
SETTINGS = Settings(
    JWT_SECRET_KEY=SecretStr("e3mU8zTfSgqD1nVbXo5LrKyW7cAhP2Jt0iQ9GsEdZ4w"),
    REDIS_URL=f"redis://{NOBODY}",
    KAFKA_BOOTSTRAP_SERVERS=NOBODY,
    KAFKA_PUBLISH_TIMEOUT_SECONDS=0.2,
)
BATCH = "/v1/batches/batch-1"
COMMAND = {"batch_id": "batch-1", "requested_pipeline": "nlp"}


class EveryBatchIsReady:
    """Knows all batches."""

    async def status(self, batch_id: str, *, user_id: str, correlation_id: UUID) -> BatchStatus:
        """Ready, whoever asks."""
        details = {"batch_id": batch_id, "asked_by": user_id, "asked_as": str(correlation_id)}
        return BatchStatus(PublicStatus.READY, details)


class Batches(Provider):
    """In the result aggregator's place."""

    @provide(scope=Scope.APP)
    def batch_status(self) -> BatchStatusProtocol:
        return EveryBatchIsReady()


@pytest.fixture
def app() -> FastAPI:
    """The gateway, with nobody behind Redis' and Kafka's addresses."""
    return create_app(SETTINGS, Batches())


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[object]]


def with_lifespan(app: FastAPI) -> AbstractAsyncContextManager[object]:
    return app.router.lifespan_context(app)


def without_lifespan(_app: FastAPI) -> AbstractAsyncContextManager[object]:
    return nullcontext()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://gateway",
        headers=build_jwt_headers(SETTINGS),
    )


async def is_served(app: FastAPI) -> None:
    """Twice what needs nobody else, and what needs Kafka and is told that it is away."""
    async with client_of(app) as client:
        for _ in range(2):
            status = await client.get(f"{BATCH}/status")
            assert (status.status_code, status.json()["status"]) == (200, "ready")
            command = await client.post(f"{BATCH}/pipelines", json=COMMAND)
            assert command.status_code == 503
            assert command.json()["error"]["code"] == "KAFKA_PUBLISH_ERROR"


@pytest.mark.parametrize("first", [with_lifespan, without_lifespan])
@pytest.mark.parametrize("second", [with_lifespan, without_lifespan])
def test_one_application_serves_loop_after_loop(
    app: FastAPI, first: Lifespan, second: Lifespan
) -> None:
    """A test is served, whatever others have done with the same application before it."""

    async def ask(lifespan: Lifespan) -> None:
        async with lifespan(app):
            await is_served(app)

    for lifespan in (first, second, second):
        asyncio.run(ask(lifespan))


async def test_lifespans_follow_each_other_in_one_loop(app: FastAPI) -> None:
    """What one lifespan has closed is open again for whoever comes after it."""
    for lifespan in (without_lifespan, with_lifespan, with_lifespan, without_lifespan):
        async with lifespan(app):
            await is_served(app)


async def test_loops_at_a_time(app: FastAPI) -> None:
    """The end of one lifespan takes nothing from another, which lives in a thread of its own."""

    def elsewhere() -> None:
        async def ask() -> None:
            async with with_lifespan(app):
                await is_served(app)

        asyncio.run(ask())

    async with with_lifespan(app):
        await is_served(app)
        await asyncio.to_thread(elsewhere)
        await is_served(app)


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
async def test_probes_may_ask_for_the_head_alone(app: FastAPI, path: str) -> None:
    """An uptime checker that sends HEAD is answered as if by GET; the document is silent of it."""
    async with client_of(app) as client:
        head, get = await client.head(path), await client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.headers["content-type"] == get.headers["content-type"]
        assert (await client.post(path)).status_code == 405
        document = (await client.get("/openapi.json")).json()
        assert not any("head" in methods for methods in document["paths"].values())
