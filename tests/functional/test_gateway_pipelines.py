"""Commands through the gateway: what is published, and what is refused."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from common_core.events.client_commands import ClientBatchPipelineRequestV1
from common_core.events.envelope import EventEnvelope
from common_core.pipeline_models import PhaseName
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.jwk_server import JwkServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.kafka_records import RecordReader, record_reader
from huleedu_service_libs.testing.signing_keys import SigningKey
from tests.gateway_process import COMMANDS_TOPIC, NOWHERE, GatewayProcess, error_of
from tests.service_process import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATTERN = "/v1/batches/{batch_id}/pipelines"
PATH = "/v1/batches/batch-1/pipelines"
GOOD_BODY = {"batch_id": "batch-1", "requested_pipeline": "spellcheck"}
JSON = "application/json"
WITHOUT_SECRET = {"JWT_ALGORITHM": "ES256", "JWT_SECRET_KEY": ""}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka() -> AsyncIterator[KafkaBroker]:
    """A Kafka that the module has to itself."""
    async with KafkaBroker() as broker:
        await broker.create_topic(COMMANDS_TOPIC)
        yield broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(kafka: KafkaBroker, redis_server: RedisServer) -> AsyncIterator[GatewayProcess]:
    """The gateway, with a limit that only one of these tests comes near."""
    async with GatewayProcess(
        kafka=kafka.bootstrap_servers,
        redis_url=redis_server.url,
        settings={"API_GATEWAY_RATE_LIMIT_REQUESTS": "1000"},
    ) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def all_commands(kafka: KafkaBroker) -> AsyncIterator[RecordReader]:
    """Whatever is published, from the beginning."""
    async with record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader:
        yield reader


@pytest_asyncio.fixture(loop_scope="module")
async def commands(gateway: GatewayProcess, all_commands: RecordReader) -> RecordReader:
    """What is published from now on."""
    async for _ in published(gateway, all_commands):
        pass
    return all_commands


def signed_by(key: SigningKey) -> str:
    """A token that is good where the key is."""
    return key.sign(
        {
            "sub": "teacher-9",
            "aud": "huleedu-platform",
            "iss": "huleedu-identity-service",
            "exp": int(time.time()) + 3600,
        }
    )


async def published(
    gateway: GatewayProcess, commands: RecordReader
) -> AsyncIterator[EventEnvelope[ClientBatchPipelineRequestV1]]:
    """What has been published since, up to a command that is given for the purpose."""
    marker = f"marker-{uuid4()}"
    assert (await gateway.request_pipeline(marker))[0] == 202
    while (record := await commands.next()).key != marker.encode():
        yield EventEnvelope[ClientBatchPipelineRequestV1].model_validate_json(record.value or b"")


async def nothing_published(gateway: GatewayProcess, commands: RecordReader) -> bool:
    """Whether nothing has been since anybody looked."""
    return [event async for event in published(gateway, commands)] == []


@pytest.mark.parametrize("pipeline", list(PhaseName))
async def test_a_command_is_published_for_its_user(
    gateway: GatewayProcess, commands: RecordReader, pipeline: PhaseName
) -> None:
    """A teacher's command goes to Kafka in their name, and the answer has the id to ask about."""
    correlation_id = uuid4()
    status, headers, body = await gateway.request_pipeline(
        "batch-7",
        user="teacher-7",
        requested_pipeline=pipeline.value,
        is_retry=True,
        retry_reason="the first one was for the wrong class",
        headers={"X-Correlation-ID": str(correlation_id)},
    )
    assert status == 202
    assert headers["content-type"] == JSON
    assert headers["x-correlation-id"] == str(correlation_id)
    assert json.loads(body) == {
        "status": "accepted",
        "batch_id": "batch-7",
        "correlation_id": str(correlation_id),
    }
    record = await commands.next()
    assert record.key == b"batch-7"
    event = EventEnvelope[ClientBatchPipelineRequestV1].model_validate_json(record.value or b"")
    assert event.event_type == "client.batch.pipeline.request"
    assert event.source_service == "api_gateway_service"
    assert event.correlation_id == correlation_id
    assert event.data == ClientBatchPipelineRequestV1(
        batch_id="batch-7",
        requested_pipeline=pipeline,
        client_correlation_id=correlation_id,
        user_id="teacher-7",
        is_retry=True,
        retry_reason="the first one was for the wrong class",
    )
    assert event.metadata is not None
    assert event.metadata["traceparent"].startswith("00-")


async def test_a_client_cannot_speak_for_another_user(
    gateway: GatewayProcess, commands: RecordReader
) -> None:
    """Who the user is, and what the correlation id, is not taken from the body."""
    correlation_id = uuid4()
    status, _, _ = await gateway.request_pipeline(
        user="teacher-1",
        user_id="mallory",
        client_correlation_id="no uuid at all",
        roles=["admin"],
        headers={"X-Correlation-ID": str(correlation_id)},
    )
    assert status == 202
    (event,) = [event async for event in published(gateway, commands)]
    assert event.data.user_id == "teacher-1"
    assert event.data.client_correlation_id == correlation_id
    assert event.data.is_retry is False
    assert event.data.retry_reason is None


@pytest.mark.parametrize("sent", [None, "", "4711", "not-a-uuid", "\x80\xff", "a" * 5_000])
async def test_each_request_has_a_correlation_id(gateway: GatewayProcess, sent: str | None) -> None:
    """One that is no UUID is replaced, and two requests never share a new one."""
    headers = {} if sent is None else {"X-Correlation-ID": sent}
    answers = [await gateway.request_pipeline(headers=headers) for _ in range(2)]
    ids = {UUID(headers["x-correlation-id"]) for _, headers, _ in answers}
    assert [status for status, _, _ in answers] == [202, 202]
    assert len(ids) == 2
    assert ids == {UUID(json.loads(body)["correlation_id"]) for _, _, body in answers}


@pytest.mark.parametrize(
    ("in_path", "batch_id"),
    [
        ("a", "a"),
        ("%C3%A5rskurs-7b%20%F0%9F%A6%8A", "årskurs-7b 🦊"),
        ("%3F%23%25%26", "?#%&"),
        ("%7Bbatch_id%7D", "{batch_id}"),
        ("x" * 128, "x" * 128),
    ],
)
async def test_batches_are_named_as_people_name_them(
    gateway: GatewayProcess, commands: RecordReader, in_path: str, batch_id: str
) -> None:
    """An id in any alphabet arrives as it was sent."""
    status, _, body = await gateway.http(
        f"/v1/batches/{in_path}/pipelines",
        method="POST",
        headers={"Authorization": f"Bearer {token()}", "Content-Type": JSON},
        body=json.dumps({**GOOD_BODY, "batch_id": batch_id}).encode(),
    )
    assert status == 202
    assert json.loads(body)["batch_id"] == batch_id
    (event,) = [event async for event in published(gateway, commands)]
    assert event.data.batch_id == batch_id


@pytest.mark.parametrize(
    "in_path", ["%0A", "a%00b", "a%5Cb", "%2E%2E", ".", "x" * 129, "%E2%80%AEgnp", "%C2%85", "a%FF"]
)
async def test_an_id_that_names_no_batch_is_refused(
    gateway: GatewayProcess, commands: RecordReader, in_path: str
) -> None:
    """What would break a log line, a URL or a key is no id, and the answer says which it was."""
    status, _, body = await gateway.http(
        f"/v1/batches/{in_path}/pipelines",
        method="POST",
        headers={"Authorization": f"Bearer {token()}", "Content-Type": JSON},
        body=json.dumps(GOOD_BODY).encode(),
    )
    assert status == 422
    problem = error_of(body)["details"]["validation_errors"][0]
    assert problem["location"] == ["path", "batch_id"]
    assert await nothing_published(gateway, commands)


async def test_a_slash_in_an_id_leads_nowhere(gateway: GatewayProcess) -> None:
    """A slash is none of an id, however it is written."""
    for path in ("/v1/batches/a%2Fb/pipelines", "/v1/batches//pipelines", f"{PATH}/"):
        status, _, body = await gateway.http(path, method="POST", body=b"{}")
        assert (status, error_of(body)["code"]) == (404, "RESOURCE_NOT_FOUND")


async def test_body_and_path_have_to_agree(gateway: GatewayProcess, commands: RecordReader) -> None:
    """A command for another batch than the one in the path is a contradiction: 400."""
    correlation_id = str(uuid4())
    status, headers, body = await gateway.http(
        PATH,
        method="POST",
        headers={
            "Authorization": f"Bearer {token()}",
            "Content-Type": JSON,
            "X-Correlation-ID": correlation_id,
        },
        body=json.dumps({**GOOD_BODY, "batch_id": "batch-2"}).encode(),
    )
    error = error_of(body)
    assert (status, error["code"]) == (400, "VALIDATION_ERROR")
    assert error["details"] == {"field": "batch_id"}
    assert error["correlation_id"] == headers["x-correlation-id"] == correlation_id
    assert await nothing_published(gateway, commands)


@pytest.mark.parametrize(
    ("location", "body"),
    [
        (["body"], b""),
        (["body", 1], b"{"),
        (["body"], b"[]"),
        (["body"], b"null"),
        (["body"], b'"batch-1"'),
        (["body", "batch_id"], b'{"requested_pipeline": "nlp"}'),
        (["body", "batch_id"], b'{"batch_id": 7, "requested_pipeline": "nlp"}'),
        (["body", "batch_id"], b'{"batch_id": "", "requested_pipeline": "nlp"}'),
        (["body", "batch_id"], b'{"batch_id": "\\ud800", "requested_pipeline": "nlp"}'),
        (["body", "requested_pipeline"], b'{"batch_id": "batch-1"}'),
        (["body", "requested_pipeline"], b'{"batch_id": "batch-1", "requested_pipeline": "sing"}'),
        (["body", "requested_pipeline"], b'{"batch_id": "batch-1", "requested_pipeline": null}'),
        (
            ["body", "is_retry"],
            b'{"batch_id": "batch-1", "requested_pipeline": "nlp", "is_retry": "perhaps"}',
        ),
        (
            ["body", "retry_reason"],
            b'{"batch_id": "batch-1", "requested_pipeline": "nlp", "retry_reason": ["a"]}',
        ),
        (
            ["body", "retry_reason"],
            b'{"batch_id": "batch-1", "requested_pipeline": "nlp", "retry_reason": "%s"}'
            % (b"x" * 2_001),
        ),
    ],
)
async def test_what_is_no_command_is_refused_with_a_reason(
    gateway: GatewayProcess, commands: RecordReader, location: list[str | int], body: bytes
) -> None:
    """The answer says what is wrong where, and repeats nothing of what was sent."""
    status, _, answer = await gateway.http(
        PATH,
        method="POST",
        headers={"Authorization": f"Bearer {token()}", "Content-Type": JSON},
        body=body,
    )
    error = error_of(answer)
    assert (status, error["code"]) == (422, "VALIDATION_ERROR")
    problem = error["details"]["validation_errors"][0]
    assert problem["location"] == location
    assert error["message"] == problem["message"]
    assert "input" not in problem
    assert await nothing_published(gateway, commands)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe\xfd",
        b'{"batch_id": "\xff"}',
        b"[" * 30_000,
        b'{"a":' * 10_000,
        b'{"batch_id": "batch-1", "requested_pipeline": "nlp", "n": ' + b"9" * 5_000 + b"}",
    ],
)
async def test_what_is_no_json_is_refused(
    gateway: GatewayProcess, commands: RecordReader, body: bytes
) -> None:
    """Bytes that no parser takes are the client's mistake, and no failure of the gateway."""
    status, _, answer = await gateway.http(
        PATH,
        method="POST",
        headers={"Authorization": f"Bearer {token()}", "Content-Type": JSON},
        body=body,
    )
    assert status in {400, 422}
    assert error_of(answer)["code"] in {"INVALID_REQUEST", "VALIDATION_ERROR"}
    assert await nothing_published(gateway, commands)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_command_is_json(gateway: GatewayProcess, content_type: str) -> None:
    """A form that a page of any origin may post without asking is no command."""
    status, _, body = await gateway.http(
        PATH,
        method="POST",
        headers={"Authorization": f"Bearer {token()}", "Content-Type": content_type},
        body=json.dumps(GOOD_BODY).encode(),
    )
    assert (status, error_of(body)["code"]) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("reason", "authorization"),
    [
        ("no_bearer_token", {}),
        ("no_bearer_token", {"Authorization": ""}),
        ("no_bearer_token", {"Authorization": "Bearer"}),
        ("no_bearer_token", {"Authorization": "Bearer "}),
        ("no_bearer_token", {"Authorization": token()}),
        ("no_bearer_token", {"Authorization": "Basic dGVhY2hlcjpwYXNzd29yZA=="}),
        ("no_bearer_token", {"Authorization": f"Bearer {token()}", "authorization": "Bearer x"}),
        ("no_bearer_token", {"X-Authorization": f"Bearer {token()}"}),
        ("invalid_token", {"Authorization": "Bearer nonsense"}),
        ("invalid_token", {"Authorization": f"Bearer {token()} {token()}"}),
        ("invalid_token", {"Authorization": f"Bearer {token()},Bearer {token()}"}),
        ("invalid_token", {"Authorization": "Bearer \xe5\xe4\xf6"}),
        ("invalid_signature", {"Authorization": f"Bearer {token()[:-4]}AAAA"}),
        ("token_expired", {"Authorization": f"Bearer {token(exp=int(time.time()) - 1)}"}),
        ("missing_exp", {"Authorization": f"Bearer {token(exp=None)}"}),
        ("missing_subject", {"Authorization": f"Bearer {token(sub=' ')}"}),
        ("invalid_audience", {"Authorization": f"Bearer {token(aud='another')}"}),
        ("invalid_issuer", {"Authorization": f"Bearer {token(iss='another')}"}),
    ],
)
async def test_strangers_stay_outside(
    gateway: GatewayProcess,
    commands: RecordReader,
    reason: str,
    authorization: Mapping[str, str],
) -> None:
    """Without one good bearer token nothing is done, and nothing is told but why."""
    # A body that a caller would be told much about.
    status, headers, body = await gateway.http(
        f"{PATH}?access_token={token()}",
        method="POST",
        headers={**authorization, "Content-Type": JSON},
        body=b'{"batch_id": 7',
    )
    error = error_of(body)
    assert (status, error["code"]) == (401, "AUTHENTICATION_ERROR")
    assert error["details"] == {"reason": reason}
    assert headers["www-authenticate"] == "Bearer"
    assert not any(name.startswith("x-ratelimit") for name in headers)
    assert await nothing_published(gateway, commands)


async def test_the_scheme_is_written_as_one_likes(gateway: GatewayProcess) -> None:
    """Of HTTP's schemes the case does not matter."""
    for scheme in ("bearer", "BEARER", "BeArEr"):
        headers = {"Authorization": f"{scheme} {token()}"}
        assert (await gateway.request_pipeline(headers=headers))[0] == 202


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PATH, 405),
        ("PUT", PATH, 405),
        ("DELETE", "/v1/batches/batch-1/status", 405),
        ("POST", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/batches", 404),
        ("BREW", "/v1/coffee", 404),
    ],
)
async def test_what_the_gateway_does_not_have_is_said_in_the_same_words(
    gateway: GatewayProcess, method: str, path: str, status: int
) -> None:
    """Unknown paths and methods are answered as any other error."""
    answered, headers, body = await gateway.http(path, method=method)
    assert answered == status
    error = error_of(body)
    assert error["code"] == ("RESOURCE_NOT_FOUND" if status == 404 else "INVALID_REQUEST")
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    "header",
    [
        b"Host: [::1",
        b"Host: a:b:c:99999999",
        b"Host: \xff",
        b"Host: a\r\nUser-Agent: \xff\xfe\\x",
        b"Host: a\r\nOrigin: \xff",
        b"Host: a\r\ntraceparent: \xff\\x\r\ntracestate: \xff\\N=\r\nbaggage: \xff",
        b"Host: a\r\nX-Correlation-ID: \xff\\u\r\nX-Correlation-ID: 7",
        b"Host: a\r\nX-Forwarded-For: \xff\r\nForwarded: for=\r\nCookie: ;;=\xff",
    ],
)
async def test_no_header_is_a_failure_of_the_gateway(
    gateway: GatewayProcess, header: bytes
) -> None:
    """Whatever a client writes into a header that nobody needs, it is served."""
    request = b"GET /healthz?%%ff=%%00 HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n" % header
    assert (await gateway.raw_http(request))[0] == 200
    assert "Traceback" not in gateway.output()


async def test_requests_commands_and_errors_are_counted(gateway: GatewayProcess) -> None:
    """What happens here can be watched: by route, status and error, and by no user."""
    before = await gateway.metrics()
    await gateway.request_pipeline("counted-batch", user="counted-teacher")
    await gateway.http(PATH, method="POST", body=b"{}")
    await gateway.http("/counted-nowhere")
    after = await gateway.metrics()

    def counted(name: str) -> float:
        return after[name] - before.get(name, 0)

    requests = 'gateway_http_requests_total{endpoint="%s",http_status="%s",method="POST"}'
    assert counted(requests % (PATTERN, 202)) == 1
    assert counted(requests % (PATTERN, 401)) == 1
    duration = 'gateway_http_request_duration_seconds_count{endpoint="%s",method="POST"}'
    assert counted(duration % PATTERN) == 2
    errors = 'gateway_api_errors_total{endpoint="%s",error_code="AUTHENTICATION_ERROR"}'
    assert counted(errors % PATTERN) == 1
    unmatched = 'gateway_api_errors_total{endpoint="unmatched",error_code="RESOURCE_NOT_FOUND"}'
    assert counted(unmatched) == 1
    assert (
        counted(f'gateway_events_published_total{{result="success",topic="{COMMANDS_TOPIC}"}}') == 1
    )
    assert not any("counted-" in name for name in after)


async def test_tokens_are_verified_with_the_keys_of_their_issuer(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Where the issuer publishes its keys, a token is good that one of them has signed."""
    key = SigningKey.generate("ES256", "key-1")
    stranger = SigningKey.generate("ES256", "key-1")
    async with (
        JwkServer(key) as server,
        GatewayProcess(
            kafka=kafka.bootstrap_servers,
            redis_url=redis_server.url,
            settings={**WITHOUT_SECRET, "JWT_JWKS_URL": server.url},
        ) as gateway,
    ):
        statuses = [
            (await gateway.request_pipeline(headers={"Authorization": f"Bearer {bearer}"}))[0]
            for bearer in (signed_by(key), signed_by(stranger), token())
        ]
    assert statuses == [202, 401, 401]


async def test_for_want_of_a_key_nobody_is_blamed() -> None:
    """Where the gateway can't tell good tokens from bad ones, it says that it is at fault."""
    bearer = {"Authorization": f"Bearer {signed_by(SigningKey.generate('ES256', 'key-1'))}"}
    for settings, status, code in (
        (WITHOUT_SECRET, 500, "CONFIGURATION_ERROR"),
        ({**WITHOUT_SECRET, "JWT_JWKS_URL": f"http://{NOWHERE}/keys"}, 503, "CONNECTION_ERROR"),
    ):
        async with GatewayProcess(settings=settings) as gateway:
            answered, headers, body = await gateway.request_pipeline(headers=bearer)
        assert (answered, error_of(body)["code"]) == (status, code)
        assert "www-authenticate" not in headers
