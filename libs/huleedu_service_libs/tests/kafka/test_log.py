"""What the log says about Kafka."""

import asyncio
import json
import os
import sys

SCRIPT = """
import asyncio
import sys
from aiokafka.errors import KafkaError
from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.kafka_client import KafkaBus
from huleedu_service_libs.logging_utils import configure_service_logging
from huleedu_service_libs.testing.kafka_broker import KafkaBroker

async def publish(bus):
    envelope = EventEnvelope(event_type="order.placed", source_service="orders", data="secret-7")
    try:
        await bus.publish("orders", envelope)
    except KafkaError:
        return False
    return True

async def main():
    async with KafkaBroker() as broker:
        bus = KafkaBus(
            client_id="orders", bootstrap_servers=broker.bootstrap_servers, timeout_s=0.5
        )
        async with bus:
            while not await publish(bus):
                pass
            await broker.go_away()
            while bus.connected:
                await publish(bus)
            for _ in range(4):
                await publish(bus)
            await broker.come_back()
            while not await publish(bus):
                pass

configure_service_logging("orders", log_level=sys.argv[1])
asyncio.run(main())
"""


async def logged(level: str) -> list[dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT, level),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"LOG_FORMAT": "json"},
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in errors.splitlines()]


async def test_one_line_for_each_change() -> None:
    """While Kafka is away the log says so once, not with each attempt."""
    lines = await logged("INFO")
    assert {line["logger"] for line in lines} == {"huleedu_service_libs.kafka_link"}
    events = [line["event"] for line in lines]
    assert events[0] == events[-1] == "Kafka answers"
    assert all(event.startswith("Kafka is away") for event in events[1:-1])
    assert 1 <= len(events) - 2 <= 3


async def test_more_on_demand() -> None:
    """At the level DEBUG the client library tells what it does, though not what is published."""
    lines = await logged("DEBUG")
    assert any(line["logger"].startswith("aiokafka") for line in lines)
    assert "secret-7" not in json.dumps(lines)
