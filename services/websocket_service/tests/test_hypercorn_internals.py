"""What `hypercorn_tuning` leans on: these fail when a release of Hypercorn changes it.

Then read the module's overrides against the new source, mend what has to be, and bring these up to
date. `test_hypercorn_tuning.py` says whether it still works.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from types import CodeType, ModuleType
from typing import Any

import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h11
import pytest
from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.task_group import TaskGroup, _handle
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.logging import Logger
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, Handshake, WSStream
from hypercorn.typing import AppWrapper

from services.websocket_service import hypercorn_tuning


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def tree(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def statements(function: Any) -> str:
    """The source without comments and in one spelling."""
    return ast.unparse(tree(function))


def assigned(cls: type) -> set[str]:
    """The attributes that the constructor sets."""
    constructor: Any = cls.__dict__["__init__"]
    return {
        target.attr
        for node in ast.walk(tree(constructor))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }


def names(code: CodeType) -> set[str]:
    """Every global and attribute that a function uses, inner functions included."""
    inner = [names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def test_release() -> None:
    """The overrides were written and measured with this release."""
    assert version("hypercorn").split(".")[:2] == ["0", "18"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            WSStream.__init__,
            [
                "self",
                "app",
                "config",
                "context",
                "task_group",
                "ssl",
                "client",
                "server",
                "send",
                "stream_id",
            ],
        ),
        (WSStream.handle, ["self", "event"]),
        (WSStream.app_send, ["self", "message"]),
        (Handshake.accept, ["self", "subprotocol", "additional_headers"]),
        (H11Protocol.handle, ["self", "event"]),
        (H11Protocol._check_protocol, ["self", "event"]),
        (AppWrapper.__call__, ["self", "scope", "receive", "send", "sync_spawn", "call_soon"]),
        (_handle, ["app", "config", "scope", "receive", "send", "sync_spawn", "call_soon"]),
        (TaskGroup.spawn_app, ["self", "app", "config", "scope", "send"]),
        (TaskGroup.spawn, ["self", "func", "args"]),
        (TCPServer.run, ["self"]),
        (TCPServer._read_data, ["self"]),
        (TCPServer._close, ["self"]),
        (WorkerContext.__init__, ["self", "max_requests"]),
        (EventWrapper.set, ["self"]),
        (Logger.__init__, ["self", "config"]),
        (Config.response_headers, ["self", "protocol"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signature(function: Callable[..., Any], expected: list[str]) -> None:
    """What is overridden, called or wrapped takes what it took."""
    assert parameters(function) == expected


@pytest.mark.parametrize(
    "function",
    [
        WSStream.handle,
        WSStream.app_send,
        H11Protocol.handle,
        H11Protocol._check_protocol,
        _handle,
        TaskGroup.spawn_app,
        TCPServer.run,
        TCPServer._read_data,
        TCPServer._close,
        EventWrapper.set,
    ],
    ids=lambda function: function.__qualname__,
)
def test_coroutine(function: Callable[..., Any]) -> None:
    """What is overridden by a coroutine function is awaited."""
    assert inspect.iscoroutinefunction(function)


@pytest.mark.parametrize(
    ("cls", "attributes"),
    [
        (
            WSStream,
            {
                *("app", "closed", "config", "handshake", "scope", "send", "start_time", "state"),
                *("stream_id", "task_group"),
            },
        ),
        (Handshake, {"extensions", "subprotocols"}),
        (H11Protocol, {"config", "connection"}),
        (TCPServer, {"protocol", "reader", "writer"}),
        (WorkerContext, {"terminate", "terminated"}),
        (Logger, {"access_logger", "error_logger"}),
    ],
)
def test_attributes(cls: type, attributes: set[str]) -> None:
    """What is read or replaced on an instance is set by its constructor."""
    assert attributes <= assigned(cls)


def test_application_gets_its_scope_from_the_task_group() -> None:
    """The task group that is replaced runs the application with the scope that has the wire."""
    source = statements(WSStream.handle)
    assert (
        "self.app_put = await self.task_group.spawn_app("
        "self.app, self.config, self.scope, self.app_send)" in source
    )
    assert "'extensions': {" in source
    assert "await self.app_put({'type': 'websocket.connect'})" in source
    assert "app(scope, receive, send, sync_spawn, call_soon)" in statements(_handle)


def test_end_of_an_application_is_a_message() -> None:
    """Whether it returns or fails, its `send` gets None."""
    assert statements(_handle).endswith("finally:\n        await send(None)")


def test_nothing_else_of_a_stream_uses_its_task_group() -> None:
    """Beside the application, only pings are spawned in it."""
    uses = [
        ast.unparse(node)
        for node in ast.walk(tree(WSStream))
        if isinstance(node, ast.Attribute) and "task_group" in ast.unparse(node.value)
    ]
    assert sorted(uses) == ["self.task_group.spawn", "self.task_group.spawn_app"]
    assert "self.task_group.spawn(self._send_pings)" in statements(WSStream._accept)


def test_original_answer() -> None:
    """The answer to an upgrade is replaced whole: this is what it did."""
    expected = textwrap.dedent("""\
        async def _accept(self, message: WebsocketAcceptEvent) -> None:
            self.state = ASGIWebsocketState.CONNECTED
            status_code, headers, self.connection = self.handshake.accept(
                message.get('subprotocol'), message.get('headers', []))
            await self.send(
                Response(stream_id=self.stream_id, status_code=status_code, headers=headers))
            await self.config.log.access(
                self.scope, {'status': status_code, 'headers': []}, time() - self.start_time)
            if self.config.websocket_ping_interval is not None:
                self.task_group.spawn(self._send_pings)
        """)
    assert statements(WSStream._accept) == ast.unparse(ast.parse(expected))
    assert "CONNECTED" in ASGIWebsocketState.__members__


def test_original_reading_and_closing() -> None:
    """`_read_data` is replaced whole, and `_close` is all that is done with the transport."""
    source = statements(TCPServer._read_data)
    assert "while not self.reader.at_eof():" in source
    assert "self.reader.read(MAX_RECV)" in source
    assert "await self.protocol.handle(RawData(data))" in source
    assert source.endswith("await self.protocol.handle(Closed())")
    assert MAX_RECV >= 65_536
    assert "await self._read_data()" in statements(TCPServer.run)
    assert "finally:\n        await self._close()" in statements(TCPServer.run)


def test_bytes_before_the_answer_are_refused_by_the_stream() -> None:
    """The stream closes itself with a 400; the tuning hangs up."""
    assert (
        "isinstance(event, (Body, Data)) and (not self.handshake.accepted):\n"
        "        await self._send_error_response(400)\n        self.closed = True"
        in statements(WSStream.handle)
    )


def test_request_is_measured_while_it_is_incomplete() -> None:
    """The limit of headers is h11's, and the same attribute holds another thing afterwards."""
    source = statements(H11Protocol.__init__)
    assert "max_incomplete_event_size=self.config.h11_max_incomplete_size" in source
    assert Config.h11_max_incomplete_size == 16 * 1024
    assert "self.connection = H11WSConnection(" in statements(H11Protocol._create_stream)
    assert "self.connection.receive_data(event.data)" in statements(H11Protocol.handle)
    assert "await self._check_protocol(event)" in statements(H11Protocol._handle_events)


def test_deadline_of_a_request_is_that_of_an_idle_connection() -> None:
    """It runs from the connection's beginning until a request is complete, whatever comes."""
    assert "self.idle_task.restart(task_group, self._idle_timeout)" in statements(TCPServer.run)
    assert "self.send(Updated(idle=False))" in statements(H11Protocol._handle_events)
    assert "self.config.keep_alive_timeout" in statements(TCPServer._idle_timeout)
    assert Config.keep_alive_timeout == 5


def test_events() -> None:
    """The events that are looked at are dataclasses with these fields."""
    for event, names_of_fields in (
        (Request, {"headers", "http_version"}),
        (StreamClosed, {"stream_id"}),
        (RawData, {"data"}),
        (Closed, set()),
    ):
        assert is_dataclass(event)
        assert names_of_fields <= {each.name for each in fields(event)}


@pytest.mark.parametrize(
    ("module", "name", "user"),
    [
        (hypercorn.protocol.h11, "WSStream", H11Protocol._create_stream),
        (hypercorn.protocol, "H11Protocol", ProtocolWrapper.__init__),
        (hypercorn.asyncio.run, "TCPServer", worker_serve),
        (hypercorn.asyncio.run, "WorkerContext", worker_serve),
    ],
)
def test_replaced_global(module: ModuleType, name: str, user: Any) -> None:
    """The classes that are replaced are looked up in these modules when they are used."""
    assert hasattr(module, name)
    assert name in names(user.__code__)
    assert user.__globals__ is vars(module)


def test_programmatic_server_is_the_same() -> None:
    """Every way to start Hypercorn with asyncio goes through `worker_serve`."""
    assert "worker_serve" in names(hypercorn.asyncio.serve.__code__)
    assert hypercorn.asyncio.serve.__globals__["worker_serve"] is worker_serve
    assert "worker_serve" in names(hypercorn.asyncio.run.asyncio_worker.__code__)


def test_connection_is_served_by_run() -> None:
    """A connection's streams are made in the context in which `run` was called."""
    assert "self.run().__await__()" in statements(TCPServer.__await__)
    assert "self.protocol = ProtocolWrapper(" in statements(TCPServer.run)


def test_application_is_asked_before_sockets_are_closed() -> None:
    """`terminated.set()` is awaited before listening stops and connections are given up."""
    source = statements(worker_serve)
    asked = source.index("await context.terminated.set()")
    assert asked < source.index("server.close()")
    assert asked < source.index("await asyncio.wait_for(gathered_server_tasks")
    assert asked < source.index("await lifespan.wait_for_shutdown()")


def test_worker_can_be_told_to_stop() -> None:
    """Setting `terminate` ends a worker as a signal does."""
    assert "raise_shutdown(context.terminate.wait)" in statements(worker_serve)


def test_logger_class_is_the_configs() -> None:
    """The class of the server's logger is taken from the configuration."""
    assert "self.logger_class(self)" in statements(vars(Config)["log"].fget)


def test_install_replaces_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `install` Hypercorn finds the tuned classes where it looks for its own."""
    for owner, name in (
        (hypercorn.asyncio.run, "TCPServer"),
        (hypercorn.asyncio.run, "WorkerContext"),
        (hypercorn.protocol.h11, "WSStream"),
        (hypercorn.protocol, "H11Protocol"),
        (Config, "logger_class"),
        (Config, "alpn_protocols"),
        (hypercorn_tuning.TunedWSStream, "max_message_bytes"),
        (hypercorn_tuning.TunedWSStream, "compression"),
        (hypercorn_tuning.TunedTCPServer, "user_timeout_s"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    hypercorn_tuning.install(max_message_bytes=123, user_timeout_s=4)
    assert worker_serve.__globals__["TCPServer"] is hypercorn_tuning.TunedTCPServer
    assert worker_serve.__globals__["WorkerContext"] is hypercorn_tuning.TunedWorkerContext
    assert H11Protocol._create_stream.__globals__["WSStream"] is hypercorn_tuning.TunedWSStream
    assert ProtocolWrapper.__init__.__globals__["H11Protocol"] is hypercorn_tuning.TunedH11Protocol
    assert isinstance(Config().log, hypercorn_tuning.TunedLogger)
    assert Config().alpn_protocols == ["http/1.1"]
