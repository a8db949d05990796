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
import hypercorn.asyncio.task_group
import hypercorn.protocol.h11
import pytest
from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WebsocketBuffer, WSStream
from hypercorn.typing import AppWrapper
from wsproto.connection import Connection, ConnectionState

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
        (WSStream._handle_events, ["self"]),
        (WSStream._send_pings, ["self"]),
        (WSStream._send_wsproto_event, ["self", "event"]),
        (WebsocketBuffer.__init__, ["self", "max_length"]),
        (WebsocketBuffer.extend, ["self", "event"]),
        (WebsocketBuffer.to_message, ["self"]),
        (WebsocketBuffer.clear, ["self"]),
        (AppWrapper.__call__, ["self", "scope", "receive", "send", "sync_spawn", "call_soon"]),
        (TCPServer.run, ["self"]),
        (WorkerContext.__init__, ["self", "max_requests"]),
        (EventWrapper.set, ["self"]),
        (Logger.__init__, ["self", "config"]),
        (Connection.events, ["self"]),
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
        WSStream._handle_events,
        WSStream._send_pings,
        WSStream._send_wsproto_event,
        TCPServer.run,
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
        (WSStream, {"app", "app_put", "buffer", "connection", "send", "stream_id"}),
        (TCPServer, {"writer"}),
        (WorkerContext, {"terminate", "terminated"}),
        (Logger, {"access_logger", "error_logger"}),
    ],
)
def test_attributes(cls: type, attributes: set[str]) -> None:
    """What is read or replaced on an instance is set by its constructor."""
    assert attributes <= assigned(cls)


def test_stream_hands_its_app_its_scope() -> None:
    """The wrapped application gets the scope in which the peer belongs."""
    assert "spawn_app(self.app, self.config, self.scope, self.app_send)" in statements(
        WSStream.handle
    )
    assert "'extensions': {" in statements(WSStream.handle)
    assert "app(scope, receive, send, sync_spawn, call_soon)" in statements(
        hypercorn.asyncio.task_group._handle
    )


def test_stream_calls_what_is_overridden() -> None:
    """Bytes from the peer go through `_handle_events`, and pings are sent by `_send_pings`."""
    assert (
        "self.connection.receive_data(event.data)\n        await self._handle_events()"
        in statements(WSStream.handle)
    )
    assert "self.task_group.spawn(self._send_pings)" in statements(WSStream._accept)


def test_original_treatment_of_events() -> None:
    """`_handle_events` is replaced whole: this is what it did."""
    expected = textwrap.dedent("""\
        async def _handle_events(self) -> None:
            for event in self.connection.events():
                if isinstance(event, Message):
                    try:
                        self.buffer.extend(event)
                    except FrameTooLargeError:
                        await self._send_wsproto_event(
                            CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
                        break
                    if event.message_finished:
                        await self.app_put(self.buffer.to_message())
                        self.buffer.clear()
                elif isinstance(event, Ping):
                    await self._send_wsproto_event(event.response())
                elif isinstance(event, CloseConnection):
                    if self.connection.state == ConnectionState.REMOTE_CLOSING:
                        await self._send_wsproto_event(event.response())
                    await self.send(StreamClosed(stream_id=self.stream_id))
        """)
    assert statements(WSStream._handle_events) == ast.unparse(ast.parse(expected))


def test_events() -> None:
    """The events of a stream are dataclasses with these fields."""
    for event, field in ((Body, "data"), (Data, "data"), (Request, "headers")):
        assert is_dataclass(event)
        assert field in {each.name for each in fields(event)}
    assert {each.name for each in fields(StreamClosed)} == {"stream_id"}


def test_states_of_a_connection() -> None:
    """What cannot be parsed is reported as a close, in a state that tells it from a real one."""
    assert {"OPEN", "REMOTE_CLOSING", "LOCAL_CLOSING", "CLOSED"} <= set(ConnectionState.__members__)
    assert "except ParseFailed as exc:\n        yield CloseConnection(code=exc.code" in statements(
        Connection.events
    )


@pytest.mark.parametrize(
    ("module", "name", "user"),
    [
        (hypercorn.protocol.h11, "WSStream", H11Protocol._create_stream),
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
        (Config, "logger_class"),
        (hypercorn_tuning.TunedWSStream, "max_message_bytes"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    hypercorn_tuning.install(max_message_bytes=123)
    assert worker_serve.__globals__["TCPServer"] is hypercorn_tuning.TunedTCPServer
    assert worker_serve.__globals__["WorkerContext"] is hypercorn_tuning.TunedWorkerContext
    assert H11Protocol._create_stream.__globals__["WSStream"] is hypercorn_tuning.TunedWSStream
    assert isinstance(Config().log, hypercorn_tuning.TunedLogger)
