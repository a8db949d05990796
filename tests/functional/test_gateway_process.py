"""The gateway's process: how it starts, and how it ends."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.kafka_records import record_reader
from tests.gateway_process import COMMANDS_TOPIC, GATEWAY_HYPERCORN, GATEWAY_SERVE, GatewayProcess
from tests.service_process import token

COMMANDS = pytest.mark.parametrize(
    "command", [GATEWAY_SERVE, GATEWAY_HYPERCORN], ids=["api-gateway-service", "hypercorn"]
)
PRODUCTION = {
    "ENVIRONMENT": "production",
    "JWT_SECRET_KEY": "e3mU8zTfSgqD1nVbXo5LrKyW7cAhP2Jt0iQ9GsEdZ4w",
    "API_GATEWAY_INTERNAL_API_KEY": "b1GkX7fRzW3oVnD9uTqYs5LcPaJe8hM2iQ0wEtCv6Zr",
    "API_GATEWAY_CORS_ORIGINS": '["https://app.example.org"]',
}


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """One that has counted nothing yet."""
    async with RedisServer() as server:
        yield server


async def ended(gateway: GatewayProcess) -> tuple[int, list[str]]:
    """Exit status and output, once it has ended by itself."""
    async with gateway:
        status = await gateway.wait()
        return status, gateway.output().splitlines()


@COMMANDS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_command_in_flight_is_finished(
    kafka: KafkaBroker, redis_server: RedisServer, command: Sequence[str], number: signal.Signals
) -> None:
    """Whoever has given a command when the gateway is stopped still gets the answer."""
    async with (
        GatewayProcess(
            kafka=kafka.bootstrap_servers, redis_url=redis_server.url, command=command
        ) as gateway,
        Redis(port=redis_server.port) as redis,
    ):
        assert (await gateway.request_pipeline("warm-up"))[0] == 202
        await kafka.delay(1)
        in_flight = asyncio.create_task(gateway.request_pipeline("batch-1", user="teacher-2"))
        # Both teachers' requests are counted before anything else is done with them.
        while await redis.dbsize() < 2:
            assert not in_flight.done()
        gateway.signal(number)
        assert (await in_flight)[0] == 202
        assert await gateway.wait() == 0
        await kafka.delay(0)
        async with record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader:
            assert [(await reader.next()).key for _ in range(2)] == [b"warm-up", b"batch-1"]
        assert "Traceback" not in gateway.output()


@COMMANDS
async def test_idle_connections_hold_nothing_up(command: Sequence[str]) -> None:
    """A browser that keeps its connection does not keep the gateway."""
    async with GatewayProcess(command=command) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await reader.readline()
        assert await gateway.terminate() == 0
        writer.close()


async def test_asking_twice_changes_nothing() -> None:
    """However often somebody presses Ctrl-C, the gateway ends once, and well."""
    # At DEBUG, the log has Kafka's refusals with their tracebacks.
    async with GatewayProcess(settings={"API_GATEWAY_LOG_LEVEL": "INFO"}) as gateway:
        for _ in range(100):
            gateway.signal(signal.SIGINT)
            gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0
        assert "Traceback" not in gateway.output()


@pytest.mark.parametrize("port", ["-1", "65536", "http", "", "1e3"])
async def test_a_port_that_is_none_is_wrong_usage(port: str) -> None:
    """The console script says what a port is."""
    command = ("env", "UNUSED={port}", GATEWAY_SERVE[0], f"--port={port}")
    status, output = await ended(GatewayProcess(command=command, ready_status=None))
    assert status == 2
    assert "is no port: choose one from 0 to 65535" in output[-1]


async def test_a_request_that_does_not_end_is_cut_off(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """The time for requests in flight is bounded, and the gateway ends well all the same."""
    async with GatewayProcess(
        kafka=kafka.bootstrap_servers,
        redis_url=redis_server.url,
        settings={
            "API_GATEWAY_SHUTDOWN_TIMEOUT_SECONDS": "0.2",
            "API_GATEWAY_KAFKA_PUBLISH_TIMEOUT_SECONDS": "4",
        },
    ) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /v1/batches/b/pipelines HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Authorization: Bearer %s\r\nExpect: 100-continue\r\n\r\n" % token().encode()
        )
        # It waits for the body now.
        assert b" 100 " in await reader.readline()
        assert await gateway.terminate() == 0
        writer.close()


async def test_two_gateways_share_a_limit(kafka: KafkaBroker, redis_server: RedisServer) -> None:
    """The gateway has no state of its own: any of several answers as the others would."""
    settings = {"API_GATEWAY_RATE_LIMIT_REQUESTS": "5"}
    async with (
        GatewayProcess(
            kafka=kafka.bootstrap_servers, redis_url=redis_server.url, settings=settings
        ) as one,
        GatewayProcess(
            kafka=kafka.bootstrap_servers, redis_url=redis_server.url, settings=settings
        ) as other,
    ):
        answers = [await (one, other)[number % 2].request_pipeline() for number in range(7)]
        assert [status for status, _, _ in answers] == [202] * 5 + [429] * 2
        assert [headers["x-ratelimit-remaining"] for _, headers, _ in answers] == [
            *("4", "3", "2", "1", "0"),
            *("0", "0"),
        ]
        _, headers, body = answers[-1]
        error = json.loads(body)["error"]
        assert error["code"] == "RATE_LIMIT"
        assert error["details"] == {"limit": 5, "window_seconds": 60}
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["x-ratelimit-limit"] == "5"
        # Another teacher has requests of their own.
        assert (await one.request_pipeline(user="teacher-2"))[0] == 202


async def test_what_is_refused_before_the_limit_does_not_count(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """A stranger can't use up a teacher's requests."""
    async with GatewayProcess(
        kafka=kafka.bootstrap_servers,
        redis_url=redis_server.url,
        settings={"API_GATEWAY_RATE_LIMIT_REQUESTS": "1"},
    ) as gateway:
        bad = {"Authorization": f"Bearer {token()[:-4]}AAAA"}
        for _ in range(3):
            assert (await gateway.request_pipeline(headers=bad))[0] == 401
        assert (await gateway.request_pipeline())[0] == 202
        assert (await gateway.request_pipeline())[0] == 429


async def test_without_redis_commands_are_accepted(kafka: KafkaBroker) -> None:
    """A limit that can't be counted keeps nobody from their work, and that is to be seen."""
    async with GatewayProcess(kafka=kafka.bootstrap_servers) as gateway:
        assert (await gateway.request_pipeline())[0] == 202
        assert (await gateway.metrics())["gateway_rate_limits_unchecked_total"] == 1


async def test_a_busy_port_is_one_clear_line() -> None:
    """Whoever starts a second gateway by mistake is told what to do."""
    second = GatewayProcess(ready_status=None)
    with socket.create_server(("127.0.0.1", second.port)):
        status, output = await ended(second)
    assert status == 1
    assert output == [
        f"Error: port {second.port} is in use: stop what runs there, or choose another with --port"
    ]


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("no.such.host.invalid", "--host 'no.such.host.invalid' can't be resolved: "),
        ("203.0.113.7", "203.0.113.7 is no address of this machine: choose another with --host"),
    ],
)
async def test_an_address_that_is_not_ours_is_one_clear_line(host: str, problem: str) -> None:
    """Without an address to listen on there is no start, and no traceback either."""
    command = (GATEWAY_SERVE[0], "--host", host, "--port", "{port}")
    status, output = await ended(GatewayProcess(command=command, ready_status=None))
    assert status == 1
    assert len(output) == 1
    assert output[0].startswith(f"Error: {problem}")


@COMMANDS
async def test_invalid_settings_are_one_line_each(command: Sequence[str]) -> None:
    """All that is wrong is named at once, and no value is shown: it might be a secret."""
    settings = {
        "API_GATEWAY_HTTP_PORT": "sekret-1",
        "API_GATEWAY_RATE_LIMIT_WINDOW": "sekret-2",
        "API_GATEWAY_REDIS_URL": "http://:sekret-3@redis",
        "API_GATEWAY_CORS_ORIGINS": "sekret-4",
        "JWT_LEEWAY_SECONDS": "sekret-5",
    }
    # Hypercorn's own status says nothing of its worker.
    _, output = await ended(GatewayProcess(command=command, settings=settings, ready_status=None))
    problems = [line for line in output if line.startswith("Error: ")]
    assert {line.split()[1] for line in problems} == set(settings)
    assert "sekret" not in "\n".join(output)
    assert "Running on" not in "\n".join(output)


@COMMANDS
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"JWT_SECRET_KEY": ""}, "JWT_SECRET_KEY"),
        ({"JWT_SECRET_KEY": "changeme"}, "JWT_SECRET_KEY"),
        ({"API_GATEWAY_INTERNAL_API_KEY": "changeme"}, "API_GATEWAY_INTERNAL_API_KEY"),
        ({"API_GATEWAY_INTERNAL_API_KEY": ""}, "API_GATEWAY_INTERNAL_API_KEY"),
        ({"API_GATEWAY_CORS_ORIGINS": ""}, "API_GATEWAY_CORS_ORIGINS"),
        ({"API_GATEWAY_CORS_ORIGINS": '["*"]'}, "API_GATEWAY_CORS_ORIGINS"),
    ],
)
async def test_production_does_not_start_insecure(
    command: Sequence[str], settings: Mapping[str, str], named: str
) -> None:
    """What anybody could guess or use stops the start, in a line that names the variable."""
    _, output = await ended(
        GatewayProcess(command=command, settings={**PRODUCTION, **settings}, ready_status=None)
    )
    assert [line.split()[1] for line in output if line.startswith("Error: ")] == [named]
    assert "changeme" not in "\n".join(output)
    assert "Running on" not in "\n".join(output)


async def test_production_starts_with_secure_settings() -> None:
    """With secrets and origins of its own the gateway starts, and logs JSON."""
    async with GatewayProcess(settings=PRODUCTION) as gateway:
        _, _, body = await gateway.http("/healthz")
        health = json.loads(body)
        assert await gateway.terminate() == 0
        lines = [json.loads(line) for line in gateway.output().splitlines()]
    assert health["environment"] == "production"
    assert {line["service.name"] for line in lines} == {"api_gateway_service"}
    assert health.keys() == {
        *("service", "status", "message", "environment", "timestamp", "uptime_seconds")
    }
    assert (health["service"], health["status"]) == ("api_gateway_service", "healthy")


async def test_elsewhere_insecure_settings_are_a_warning() -> None:
    """In development the gateway starts with what there is, and says what production would not."""
    settings = {"JWT_SECRET_KEY": "changeme"}
    async with GatewayProcess(settings=settings) as gateway:
        assert (await gateway.http("/healthz"))[0] == 200
        warnings = [line for line in gateway.output().splitlines() if line.startswith("Warning: ")]
    assert [line.split()[1] for line in warnings] == ["JWT_SECRET_KEY", "API_GATEWAY_CORS_ORIGINS"]


async def test_the_port_is_that_of_the_settings() -> None:
    """Without --port the variable counts."""
    in_environment = ("env", "API_GATEWAY_HTTP_PORT={port}")
    command = (*in_environment, GATEWAY_SERVE[0], "--host", "127.0.0.1")
    async with GatewayProcess(command=command) as gateway:
        assert (await gateway.http("/healthz"))[0] == 200
