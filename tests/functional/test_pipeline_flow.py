"""From a command at the gateway to what the teacher's tab shows, through real processes."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.functional.pipeline import Pipeline, batch_and_type, pipeline, shown
from tests.functional.pipeline_backend import REFUSED, RUN_PIPELINE
from tests.functional.v1_tab import v1_tab
from tests.service_process import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT_ID = "b7ad6b7169203331"
# The way of a command and of the first of its notifications, by the spans' names.
WAY = ("gateway.publish_command", RUN_PIPELINE, "bridge.publish_notification", "websocket.forward")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flow() -> AsyncIterator[Pipeline]:
    async with pipeline() as running, running.bridge():
        yield running


async def spans_of(flow: Pipeline, trace_id: str) -> dict[str, Span]:
    """The first span of each step in the trace, once they have all come."""

    def is_step(name: str) -> Callable[[Span], bool]:
        return lambda span: span.name == name and span.trace_id.hex() == trace_id

    found = {name: await flow.collector.wait_for(is_step(name)) for name in WAY}
    return {name: min(spans, key=_start) for name, spans in found.items()}


def _start(span: Span) -> int:
    return span.start_time_unix_nano


async def test_a_command_comes_back_as_notifications(flow: Pipeline) -> None:
    """The tab tells when the batch is begun and done, with the correlation id of the command."""
    correlation_id = "0b9ef2a7-3f0e-4a55-9a38-6c5f7d9c1a11"
    async with v1_tab(flow.websockets, "teacher-1") as tab:
        batch = await flow.command("teacher-1", headers={"X-Correlation-ID": correlation_id})
        frames = await tab.notifications(2)
    assert [batch_and_type(frame) for frame in frames] == shown(batch)
    for frame in frames:
        assert frame["correlation_id"] == correlation_id
        assert frame["source_service"] == "batch_orchestrator_service"
        assert frame["data"]["requested_pipeline"] == "spellcheck"


async def test_one_trace_from_the_request_to_the_socket(flow: Pipeline) -> None:
    """The client's trace id is that of each step, and each step is the next one's parent."""
    trace_id = "5af7651916cd43dd8448eb211c80319d"
    headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01"}
    async with v1_tab(flow.websockets, "teacher-2") as tab:
        await flow.command("teacher-2", headers=headers)
        frames = await tab.notifications(2)
        spans = await spans_of(flow, trace_id)
    for frame in frames:
        assert frame["metadata"]["traceparent"].split("-")[1] == trace_id
    request = [
        span
        for span in flow.collector.spans
        if span.trace_id.hex() == trace_id and span.parent_span_id.hex() == PARENT_ID
    ]
    assert [span.span_id for span in request] == [spans[WAY[0]].parent_span_id]
    for before, after in itertools.pairwise(WAY):
        assert spans[after].parent_span_id == spans[before].span_id, (before, after)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"batch_id": "another"}, 400),
        ({"batch_id": None}, 422),
        ({"requested_pipeline": "no such"}, 422),
    ],
)
async def test_a_command_that_the_gateway_refuses_goes_nowhere(
    flow: Pipeline, fields: dict[str, Any], status: int
) -> None:
    """The client is told why, and the tab shows nothing of it."""
    async with v1_tab(flow.websockets, "teacher-3") as tab:
        answered, _, body = await flow.gateway.http(
            "/v1/batches/batch-0/pipelines",
            method="POST",
            headers={
                "Authorization": f"Bearer {token('teacher-3')}",
                "Content-Type": "application/json",
            },
            body=json.dumps(
                {"batch_id": "batch-0", "requested_pipeline": "spellcheck", **fields}
            ).encode(),
        )
        assert (answered, json.loads(body)["error"]["code"]) == (status, "VALIDATION_ERROR")
        batch = await flow.command("teacher-3")
        assert [batch_and_type(f) for f in await tab.notifications(2)] == shown(batch)


async def test_a_stranger_gives_no_commands(flow: Pipeline) -> None:
    """Without a good token nothing is published, in nobody's name."""
    async with v1_tab(flow.websockets, "teacher-4") as tab:
        for bearer in ("", "Bearer", "Bearer not.a.token"):
            status, _, body = await flow.gateway.request_pipeline(
                "batch-0", user="teacher-4", headers={"Authorization": bearer}
            )
            assert (status, json.loads(body)["error"]["code"]) == (401, "AUTHENTICATION_ERROR")
        batch = await flow.command("teacher-4")
        assert [batch_and_type(f) for f in await tab.notifications(2)] == shown(batch)


async def test_a_command_that_the_backend_refuses(flow: Pipeline) -> None:
    """What a backend refuses later reaches the tab as a notification that says so."""
    async with v1_tab(flow.websockets, "teacher-5") as tab:
        status, _, _ = await flow.gateway.request_pipeline(
            "batch-5", user="teacher-5", is_retry=True
        )
        assert status == 202
        [frame] = await tab.notifications(1)
    assert batch_and_type(frame) == ("batch-5", REFUSED)
    assert frame["data"]["action_required"] is True


async def test_each_teacher_sees_their_own(flow: Pipeline) -> None:
    """Commands of two teachers at once end up in the tab of each."""
    async with (
        v1_tab(flow.websockets, "teacher-6") as one,
        v1_tab(flow.websockets, "teacher-7") as other,
    ):
        batches = await asyncio.gather(
            *(flow.command(user) for _ in range(10) for user in ("teacher-6", "teacher-7"))
        )
        for tab, expected in ((one, batches[::2]), (other, batches[1::2])):
            frames = await tab.notifications(20)
            assert sorted(map(batch_and_type, frames)) == sorted(shown(*expected))
