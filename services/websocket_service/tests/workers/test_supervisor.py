"""The supervisor with workers that do not do as they are told."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from huleedu_service_libs.testing.polling import until
from services.websocket_service.cli.listening import WorkerListeners
from services.websocket_service.workers.supervisor import Supervisor, WorkersFailedError


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


async def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end in good order, and the failure is told."""
    monkeypatch.setenv("JWT_SECRET_KEY", "k" * 40)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    before = children()
    stop = asyncio.Event()
    supervisor = Supervisor(WorkerListeners("127.0.0.1", 0, 2), stop_timeout_s=3.0)
    running = asyncio.create_task(supervisor.run(stop))

    async def both_serve() -> bool:
        page = (await supervisor.metrics.page()).decode()
        return 'websocket_workers{state="serving"} 2.0' in page

    await until(both_serve)
    hung = min(children() - before)
    os.kill(hung, signal.SIGSTOP)
    stop.set()
    with pytest.raises(WorkersFailedError, match="did not end in time and was killed"):
        await running
    assert children() <= before
    assert 'state="waiting"} 2.0' in (await supervisor.metrics.page()).decode()
