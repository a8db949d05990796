"""The API gateway as deployments run it: a process of its own, on a free loopback port."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.http_process import HttpProcess
from tests.service_process import SECRET, token

GATEWAY_HYPERCORN = (
    *(sys.executable, "-m", "hypercorn"),
    *("services.api_gateway_service.main:app", "--bind"),
)
GATEWAY_SERVE = (
    str(Path(sys.executable).with_name("api-gateway-service")),
    *("--host", "127.0.0.1", "--port", "{port}"),
)
INTERNAL_API_KEY = "a-key-of-the-tests-with-more-than-32-bytes"
COMMANDS_TOPIC = "huleedu.commands.batch.pipeline.v1"
NOWHERE = "127.0.0.1:1"
"""A port that nobody listens on."""


def error_of(body: bytes) -> dict[str, Any]:
    """The error in a body of the gateway's, after a look at its form."""
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {
        *("code", "message", "correlation_id", "service", "timestamp", "details")
    }
    assert error["service"] == "api_gateway_service"
    return error


class GatewayProcess(HttpProcess):
    """Entered once `/healthz` answers; left with SIGTERM and the process gone.

    `kafka` has the bootstrap servers, and `settings` environment variables. `command` and
    `ready_status` are those of `HttpProcess`.
    """

    def __init__(
        self,
        *,
        kafka: str = NOWHERE,
        redis_url: str = f"redis://{NOWHERE}",
        aggregator_url: str = f"http://{NOWHERE}",
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = GATEWAY_SERVE,
        ready_status: int | None = 200,
    ) -> None:
        super().__init__(
            command,
            settings={
                "JWT_SECRET_KEY": SECRET,
                "API_GATEWAY_KAFKA_BOOTSTRAP_SERVERS": kafka,
                "API_GATEWAY_REDIS_URL": redis_url,
                "API_GATEWAY_RESULT_AGGREGATOR_URL": aggregator_url,
                "API_GATEWAY_INTERNAL_API_KEY": INTERNAL_API_KEY,
                "API_GATEWAY_LOG_LEVEL": "DEBUG",
                **(settings or {}),
            },
            ready_path="/healthz",
            ready_status=ready_status,
        )

    async def request_pipeline(
        self,
        batch_id: str = "batch-1",
        *,
        user: str = "teacher-1",
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> tuple[int, dict[str, str], bytes]:
        """Give a command as a client does; `fields` add to its body."""
        body = {"batch_id": batch_id, "requested_pipeline": "spellcheck", **fields}
        return await self.http(
            f"/v1/batches/{batch_id}/pipelines",
            method="POST",
            headers={
                "Authorization": f"Bearer {token(user)}",
                "Content-Type": "application/json",
                **(headers or {}),
            },
            body=json.dumps(body).encode(),
        )

    async def batch_status(
        self,
        batch_id: str = "batch-1",
        *,
        user: str = "teacher-1",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask how far a batch is, as a client does."""
        return await self.http(
            f"/v1/batches/{batch_id}/status",
            headers={"Authorization": f"Bearer {token(user)}", **(headers or {})},
        )
