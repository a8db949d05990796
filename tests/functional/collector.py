"""What a tracing backend receives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


def attributes(span: Span) -> dict[str, Any]:
    """Those of the span, each of whatever type it has."""
    return {
        attribute.key: getattr(attribute.value, str(attribute.value.WhichOneof("value")))
        for attribute in span.attributes
    }


class Collector:
    """An OTLP receiver over HTTP: keeps what comes and wakes who waits for it."""

    def __init__(self) -> None:
        self.exports: list[ResourceSpans] = []
        self.settings: dict[str, str] = {}
        """The environment variables of a process that is to export its spans here."""
        self._changed = asyncio.Condition()

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        return [
            span
            for export in self.exports
            for scope_spans in export.scope_spans
            for span in scope_spans.spans
        ]

    def text(self) -> str:
        """Everything that has come: resources, names, attributes, events, states."""
        return "\n".join(str(export) for export in self.exports)

    async def wait_for(self, wanted: Callable[[Span], bool], count: int = 1) -> list[Span]:
        """The spans that are wanted, once there are as many."""
        async with self._changed:
            await self._changed.wait_for(lambda: sum(map(wanted, self.spans)) >= count)
        return [span for span in self.spans if wanted(span)]

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one HTTP connection."""
        with_body = b"content-length:"
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.splitlines()
                    if line.lower().startswith(with_body)
                )
                request = ExportTraceServiceRequest.FromString(await reader.readexactly(length))
                async with self._changed:
                    self.exports += request.resource_spans
                    self._changed.notify_all()
                answer = ExportTraceServiceResponse().SerializeToString()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
                writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """One that listens on a free loopback port."""
    receiver = Collector()
    async with await asyncio.start_server(receiver.receive, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        receiver.settings = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        yield receiver
