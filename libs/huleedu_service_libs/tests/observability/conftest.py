from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

RunPython = Callable[..., "Finished"]


@dataclass(frozen=True)
class Finished:
    lines: list[str]
    stderr: str
    exit_s: float
    """From the script's last line to the end of its process."""


@pytest.fixture
def run_python() -> RunPython:
    """Run a script in a process of its own: OpenTelemetry's state is global and set once."""

    def run(script: str, **variables: str) -> Finished:
        env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | variables
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"{script}\nprint('last line', flush=True)"],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = []
            for line in process.stdout:
                if line == "last line\n":
                    break
                lines.append(line.rstrip("\n"))
            last_line_at = time.monotonic()
            stderr = process.stderr.read()
            assert process.wait() == 0, stderr
            exit_s = time.monotonic() - last_line_at
        return Finished(lines, stderr, exit_s)

    return run


@dataclass(frozen=True)
class Collector:
    url: str
    requests: queue.SimpleQueue[ExportTraceServiceRequest]

    def spans(self) -> list[tuple[str, str]]:
        """Service name and span name of everything received."""
        received = []
        while not self.requests.empty():
            for resource_spans in self.requests.get().resource_spans:
                names = [
                    attribute.value.string_value
                    for attribute in resource_spans.resource.attributes
                    if attribute.key == "service.name"
                ]
                received += [
                    (names[0], span.name)
                    for scope_spans in resource_spans.scope_spans
                    for span in scope_spans.spans
                ]
        return received


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A real OTLP collector, as far as it needs to be one."""
    requests: queue.SimpleQueue[ExportTraceServiceRequest] = queue.SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Receiver))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield Collector(f"http://127.0.0.1:{server.server_port}", requests)
