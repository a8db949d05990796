"""The gateway does what its OpenAPI document says: schemathesis asks, the gateway answers."""

import json
from pathlib import Path

from huleedu_service_libs.error_handling import PublicError, PublicErrorBody
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.stand_in_server import StandInServer
from tests.contract.schemathesis_run import checked_against_document
from tests.gateway_process import GatewayProcess
from tests.service_process import token

# A body and a path that are made apart name two batches, and there are characters in no id that a
# schema does not exclude.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = [200, 202, 400, 422]
"""
BATCH = {"user_id": "teacher-1", "overall_status": "processing_pipelines"}


async def test_the_gateway_does_what_the_document_says(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Whatever is sent, good or bad, gets a status, a type and a body that the document has."""
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    async with (
        KafkaBroker() as kafka,
        StandInServer() as aggregator,
        GatewayProcess(
            kafka=kafka.bootstrap_servers,
            redis_url=redis_server.url,
            aggregator_url=aggregator.origin,
            settings={"API_GATEWAY_RATE_LIMIT_REQUESTS": "100000"},
        ) as gateway,
    ):
        aggregator.answer(json.dumps(BATCH).encode())
        said = await checked_against_document(
            f"http://127.0.0.1:{gateway.port}/openapi.json",
            header=f"Authorization: Bearer {token()}",
            folder=tmp_path,
        )
        assert "3 selected / 3 total" in said
        assert "unexpected exception" not in gateway.output()


async def test_the_document_tells_clients_all_they_need() -> None:
    """Paths, the bearer token, and for each error its body and when it comes."""
    async with GatewayProcess() as gateway:
        status, headers, body = await gateway.http("/openapi.json")
    assert status == 200
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert {path: sorted(operations) for path, operations in document["paths"].items()} == {
        "/v1/batches/{batch_id}/pipelines": ["post"],
        "/v1/batches/{batch_id}/status": ["get"],
        "/healthz": ["get"],
    }
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            if path.startswith("/v1/"):
                assert operation["security"]
                assert {"401", "413", "422", "429", "500", "503"} <= operation["responses"].keys()
            for code, response in operation["responses"].items():
                if code >= "400":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}


async def test_the_document_has_the_error_body_of_all_services() -> None:
    """What it says of errors is what the library answers with."""
    async with GatewayProcess() as gateway:
        _, _, body = await gateway.http("/openapi.json")
    schemas = json.loads(body)["components"]["schemas"]
    assert schemas["ErrorBody"]["properties"].keys() == PublicErrorBody.__annotations__.keys()
    assert schemas["PublicError"]["properties"].keys() == PublicError.__annotations__.keys()
    assert {*schemas["PublicError"]["required"]} == PublicError.__required_keys__
