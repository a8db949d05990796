"""What the README tells backend services of the way over Kafka is so."""

import asyncio
import json
import re
import sys
from typing import Any

from common_core.events.notification_events import TeacherNotificationRequestedV1
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory
from huleedu_service_libs.redis_server import RedisServer
from tests.contract.page_parts import block, table
from tests.service_process import REPO, ServiceProcess
from tests.teacher_events import kafka

GIVE_UP_AFTER_S = 30
ADDRESS = "127.0.0.1:9092"
MADE_ANEW = {"id", "timestamp", "correlation_id"}


def readme() -> str:
    return (REPO / "services/websocket_service/README.md").read_text(encoding="utf-8")


def shown() -> dict[str, Any]:
    """The notification that the page shows."""
    found = re.search(r"^```json\n(\{\"id\".*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    assert found is not None
    notification: dict[str, Any] = json.loads(found[1])
    return notification


def without_what_is_made_anew(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in MADE_ANEW}


async def run_example(bootstrap_servers: str) -> None:
    """Run the page's example as it stands, but for the address."""
    code = block(readme(), "python", "request")
    assert ADDRESS in code
    example = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code.replace(ADDRESS, bootstrap_servers)
    )
    assert await example.wait() == 0


async def test_the_example_tells_the_teacher(redis_server: RedisServer) -> None:
    """Whoever copies the example gets the notification that the page shows into the tab."""
    async with (
        asyncio.timeout(GIVE_UP_AFTER_S),
        kafka() as broker,
        ServiceProcess(
            redis_server.url, settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
        ) as service,
        service.connect() as tab,
    ):
        await run_example(broker.bootstrap_servers)
        got = json.loads(await tab.recv())
    expected = shown()
    assert list(got) == list(expected)
    assert list(got["data"]) == list(expected["data"])
    assert without_what_is_made_anew(got) | {"data": None} == (
        without_what_is_made_anew(expected) | {"data": None}
    )
    assert without_what_is_made_anew(got["data"]) == without_what_is_made_anew(expected["data"])
    assert got["data"]["correlation_id"] == got["correlation_id"]


def test_the_table_has_the_fields_of_an_event() -> None:
    """Each field is named, with what it may be where that is a choice, and whether it is needed."""
    told = {row[0].strip("`"): row[1] for row in table(readme(), "field of the event's `data`")}
    fields = TeacherNotificationRequestedV1.model_fields
    assert told.keys() == fields.keys()
    assert {name for name, what in told.items() if what.startswith("required")} == {
        name for name, field in fields.items() if field.is_required()
    }
    for name, choices in (("category", WebSocketEventCategory), ("priority", NotificationPriority)):
        assert re.findall(r"`(\w+)`", told[name]) == [choice.value for choice in choices]
