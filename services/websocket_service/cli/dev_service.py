"""The process tree of `dev`: this process, and a private Redis unless one is given."""

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import click

from huleedu_service_libs.redis_server import RedisServer, RedisServerNotFoundError
from huleedu_service_libs.serving.hypercorn_server import serve_until
from huleedu_service_libs.serving.listening import listen
from services.websocket_service.cli import discovery
from services.websocket_service.cli.discovery import RunningDev
from services.websocket_service.cli.listening import local_authority
from services.websocket_service.cli.minting import mint
from services.websocket_service.cli.output import (
    CliError,
    is_coloured,
    print_json,
)
from services.websocket_service.cli.redis_access import redis_client
from services.websocket_service.cli.settings import load_settings, require_usable
from services.websocket_service.cli.target import SIGNING_ALGORITHMS, Backplane, SigningKey
from services.websocket_service.config import Settings
from services.websocket_service.effective_settings import is_set, jwt_secret, masked_url

DEMO_USER = "teacher-1"
_DEMO_EVENT = "batch_results_ready"
_DEMO_DATA = '{"batch_id": "batch-1"}'
_TOKEN_LIFETIME = timedelta(days=1)
_START_TIMEOUT_S = 30.0
_POLL_INTERVAL_S = 0.05
# For which 1024 open files are enough, the lowest limit that systems come with.
_MAX_CONNECTIONS = 900


async def run_dev(stop: asyncio.Event, *, host: str, port: int, as_json: bool) -> None:
    """Run until `stop` is set or the server ends; on return nothing that was started is left.

    Raises CliError or StartError for whatever the user has to put right first.
    """
    settings = load_settings()
    if settings.JWT_ALGORITHM not in SIGNING_ALGORITHMS:
        raise CliError(
            f"JWT_ALGORITHM is {settings.JWT_ALGORITHM}, but `dev` signs its own tokens: unset "
            f"it, or choose one of {', '.join(SIGNING_ALGORITHMS)}"
        )
    if settings.kafka_connection is not None and not is_set(settings, "REDIS_URL"):
        raise CliError(
            "KAFKA_BOOTSTRAP_SERVERS is set, but the Redis of `dev` is its own: events that its "
            "bridge takes would reach nobody else. Set REDIS_URL too, or unset it"
        )
    try:
        discovery.running()
    except discovery.UntrustedFolderError as error:
        raise CliError(str(error)) from None

    with contextlib.closing(listen(host, port)) as listener:
        async with _redis_url(settings, stop) as redis_url:
            # The service reads its settings when its module is imported.
            os.environ["REDIS_URL"] = redis_url
            if jwt_secret(settings) is None:
                os.environ["JWT_SECRET_KEY"] = secrets.token_urlsafe(32)
            if not is_set(settings, "WEBSOCKET_MAX_CONNECTIONS"):
                os.environ["WEBSOCKET_MAX_CONNECTIONS"] = str(_MAX_CONNECTIONS)
            settings = load_settings()
            require_usable(settings)
            authority = local_authority(listener)
            bound_port: int = listener.getsockname()[1]
            instance = _instance(settings, authority, bound_port)
            async with _serving(listener.detach(), stop):
                if await _is_ready(authority, stop):
                    with discovery.announced(instance):
                        _announce(instance, as_json=as_json)
                        await stop.wait()


@contextlib.asynccontextmanager
async def _redis_url(settings: Settings, stop: asyncio.Event) -> AsyncIterator[str]:
    """The given Redis, which has to answer, or one of our own until the service has ended.

    If our own ends by itself, `stop` gets set, and CliError is raised in the end.
    """
    if is_set(settings, "REDIS_URL"):
        async with redis_client(Backplane.of(settings)) as redis:
            await redis.ping()
        yield settings.REDIS_URL
        return
    try:
        server = RedisServer()
    except RedisServerNotFoundError as error:
        raise CliError(str(error)) from None
    ended_by_itself = False

    def on_end(_: asyncio.Task[None]) -> None:
        nonlocal ended_by_itself
        # Told to stop, a process manager may end our children as well.
        ended_by_itself = not stop.is_set()
        stop.set()

    async with server:
        waiting = asyncio.create_task(server.wait())
        waiting.add_done_callback(on_end)
        yield server.url
    if ended_by_itself:
        raise CliError("the private Redis ended: start dev again")


@contextlib.asynccontextmanager
async def _serving(descriptor: int, stop: asyncio.Event) -> AsyncIterator[None]:
    """Serve on a listening socket, which Hypercorn closes; setting `stop` ends it.

    If the server ends by itself, `stop` gets set. Raises StartError.
    """
    # Not earlier: importing it reads the environment.
    from services.websocket_service.main import app  # noqa: PLC0415

    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)
    serving = asyncio.create_task(serve_until(stop, app, descriptor))
    serving.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        stop.set()
        await serving


async def _is_ready(authority: str, stop: asyncio.Event) -> bool:
    """Wait until the service takes connections; False if it stopped before.

    Raises CliError after `_START_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not stop.is_set():
                if await _answers_ready(authority):
                    return True
                await asyncio.sleep(_POLL_INTERVAL_S)
    except TimeoutError:
        raise CliError(
            f"the service was not ready after {_START_TIMEOUT_S:.0f} s: its log, above, and "
            f"http://{authority}/readyz say why"
        ) from None
    return False


async def _answers_ready(authority: str) -> bool:
    host, _, port = authority.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        return False
    try:
        request = f"GET /readyz HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        _, _, status = (await reader.readline()).partition(b" ")
        return status.startswith(b"200")
    except OSError:
        return False
    finally:
        writer.close()


def _instance(settings: Settings, authority: str, port: int) -> RunningDev:
    return RunningDev(
        url=f"ws://{authority}/ws",
        redis_url=settings.REDIS_URL,
        channel_prefix=settings.REDIS_CHANNEL_PREFIX,
        jwt_secret=jwt_secret(settings) or "",
        jwt_algorithm=settings.JWT_ALGORITHM,
        jwt_audience=settings.JWT_AUDIENCE,
        jwt_issuer=settings.JWT_ISSUER,
        pid=os.getpid(),
        port=port,
    )


def _announce(instance: RunningDev, *, as_json: bool) -> None:
    token = mint(SigningKey.of(instance), DEMO_USER, _TOKEN_LIFETIME).token
    url = f"{instance.url}?token={token}"
    if as_json:
        print_json(
            {
                "url": url,
                "token": token,
                "user": DEMO_USER,
                "redis_url": instance.redis_url,
                "port": instance.port,
                "pid": instance.pid,
            }
        )
        return
    who = f"--port {instance.port} --user {DEMO_USER}"
    script = _script()
    paragraphs = (
        (f"Connect as {DEMO_USER} (valid for a day):", url),
        (
            f"Send {DEMO_USER} a notification:",
            f"{script} notify {who} --event {_DEMO_EVENT} --data '{_DEMO_DATA}'",
        ),
        ("See what arrives:", f"{script} tail {who}"),
    )
    coloured = is_coloured(sys.stdout)
    click.echo(f"The service is ready on port {instance.port}. Ctrl-C stops it.")
    click.echo(f"Redis: {masked_url(instance.redis_url)}")
    for heading, line in paragraphs:
        shown = click.style(line, fg="cyan") if coloured else line
        click.echo(f"\n{heading}\n  {shown}", color=coloured)


def _script() -> str:
    """How another shell calls this program: by name if the PATH leads here."""
    script = Path(sys.argv[0])
    found = shutil.which(script.name)
    if found and Path(found).resolve() == script.resolve():
        return script.name
    return shlex.quote(str(script.absolute()))
