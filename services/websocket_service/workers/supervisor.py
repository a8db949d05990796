"""Starts the workers, replaces those that crash, and stops them all.

- A worker that ends without having been told to does not touch the others. It is logged, counted
  and replaced: at once, and ever later the more often it happens.
- Only where none has ever served is a worker that ends the end of all: the next would fare alike.
- Workers end by themselves when this process is gone, since the channel to it ends.
"""

import asyncio
import contextlib

from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service.cli.listening import WorkerListeners
from services.websocket_service.workers.place import Place
from services.websocket_service.workers.shared_metrics import SharedMetrics
from services.websocket_service.workers.worker_process import WorkerProcess

logger = create_service_logger(__name__)


class WorkersFailedError(Exception):
    """The service could not start, or did not end in good order; the message says why."""


class Supervisor:
    """Keeps a worker on each of the listening sockets, which it closes in the end."""

    def __init__(self, listeners: WorkerListeners, *, stop_timeout_s: float) -> None:
        self._listeners = listeners
        self._stop_timeout_s = stop_timeout_s
        self._places = tuple(Place(index + 1) for index in range(len(listeners)))
        self.metrics = SharedMetrics(self._places)
        self._stop = asyncio.Event()
        self._launching = asyncio.Lock()
        self._have_served = False
        self._failure: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Return when `stop` has been set and all workers have ended; they drain side by side.

        Raises WorkersFailedError where none could start, or one did not end as it should.
        """
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            for place in self._places:
                tasks.create_task(self._keep(place))
            await stop.wait()
            # Else those who come now would wait for a worker that has left already.
            self._listeners.close()
        if self._failure is not None:
            raise WorkersFailedError(self._failure)

    async def _keep(self, place: Place) -> None:
        while not self._stop.is_set():
            try:
                await self._run_one(place)
            except OSError as error:
                # Out of memory, processes or descriptors: that may pass.
                self._require_another(f"worker {place.number} can't be launched: {error.strerror}")
                await self._wait_before_next(
                    place, "worker can't be launched", served_s=0.0, reason=error.strerror
                )

    async def _run_one(self, place: Place) -> None:
        # One at a time: each changes the signal mask for a moment.
        async with self._launching:
            if self._stop.is_set():
                return
            worker = await WorkerProcess.launch(self._listeners[place.number - 1])
        place.worker = worker
        logger.info("worker launched", worker=place.number, pid=worker.pid)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.converse(self.metrics.page))
            await self._end_or_stop(place, worker)
        self._have_served = self._have_served or worker.ready
        # One step: a scrape in between would miss it, or count it twice.
        place.worker = None
        self.metrics.keep_counts(worker)
        if self._stop.is_set():
            return
        if not worker.ended_in_order:
            self._require_another(
                worker.failure
                or f"worker {place.number} did not start: it ended with {worker.ending}"
            )
        self.metrics.restarts += 1
        await self._wait_before_next(
            place,
            "worker ended unexpectedly",
            served_s=worker.served_s,
            pid=worker.pid,
            ending=worker.ending,
            reason=worker.failure,
        )

    async def _end_or_stop(self, place: Place, worker: WorkerProcess) -> None:
        ended = asyncio.create_task(worker.end())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ended.done():
            return
        in_time = await worker.stop(timeout_s=self._stop_timeout_s)
        await ended
        if not in_time:
            self._fail(f"worker {place.number} did not end in time and was killed")
        elif not worker.ended_in_order:
            self._fail(f"worker {place.number} ended with {worker.ending} instead of draining")

    def _fail(self, reason: str) -> None:
        # The first: others may follow from it.
        self._failure = self._failure or reason
        self._stop.set()

    def _require_another(self, reason: str) -> None:
        """The end, with this reason, where no worker has ever served."""
        if not self._have_served and not any(
            place.worker is not None and place.worker.ready for place in self._places
        ):
            self._fail(reason)

    async def _wait_before_next(
        self, place: Place, event: str, *, served_s: float, **particulars: str | int | None
    ) -> None:
        if self._stop.is_set():
            return
        delay_s = place.backoff.next_delay_s(served_s=served_s)
        if delay_s:
            self._listeners.forsake(place.number - 1)
        logger.error(event, worker=place.number, **particulars, restart_in_s=delay_s)
        if delay_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()
