from dataclasses import dataclass, field

from services.websocket_service.workers.restart_backoff import RestartBackoff
from services.websocket_service.workers.worker_process import WorkerProcess


@dataclass(slots=True)
class Place:
    """What one worker after the other takes; numbers begin with 1."""

    number: int
    worker: WorkerProcess | None = None
    backoff: RestartBackoff = field(default_factory=RestartBackoff)
