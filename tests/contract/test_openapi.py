"""The internal API does what its OpenAPI document says: schemathesis asks, the service answers."""

import json
from pathlib import Path

from huleedu_service_libs.redis_server import RedisServer
from tests.contract.schemathesis_run import checked_against_document
from tests.service_process import ServiceProcess

KEY = "a-key-of-the-tests-with-more-than-32-bytes"


async def test_the_service_does_what_the_document_says(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Whatever is sent, good or bad, gets a status, a type and a body that the document has."""
    settings = {"INTERNAL_API_KEY": KEY}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        said = await checked_against_document(
            f"http://127.0.0.1:{service.port}/internal/v1/openapi.json",
            header=f"X-Internal-API-Key: {KEY}",
            folder=tmp_path,
        )
        assert "5 selected / 5 total" in said
        assert KEY not in service.output()
        assert "unexpected exception" not in service.output()


async def test_the_document_needs_no_key_and_has_the_internal_routes_alone(
    redis_server: RedisServer,
) -> None:
    """Anybody who reaches the API may read how it is spoken to: nothing of it is secret."""
    settings = {"INTERNAL_API_KEY": KEY}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        status, headers, body = await service.http("/internal/v1/openapi.json")
    assert status == 200
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert document["openapi"].startswith("3.1.")
    assert {path: sorted(operations) for path, operations in document["paths"].items()} == {
        "/internal/v1/notifications": ["post"],
        "/internal/v1/disconnections": ["post"],
        "/internal/v1/revocations": ["post"],
        "/internal/v1/presence": ["get"],
        "/internal/v1/history": ["get"],
    }
    operations = [one for path in document["paths"].values() for one in path.values()]
    for operation in operations:
        assert operation["summary"]
        assert {"400", "401", "503"} <= operation["responses"].keys()
        assert {"X-Service-ID", "X-Correlation-ID"} <= {
            parameter["name"] for parameter in operation["parameters"]
        }
    schemes = document["components"]["securitySchemes"]
    assert [(scheme["in"], scheme["name"]) for scheme in schemes.values()] == [
        ("header", "X-Internal-API-Key")
    ]
    assert document["security"] == [{name: []} for name in schemes]
