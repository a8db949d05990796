"""The metrics of all workers and of their supervisor, put together when somebody asks.

What a worker had counted is kept when it is gone, so that no counter ever goes backwards.
"""

import asyncio
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.websocket_service.workers.aggregation import (
    Families,
    merged,
    parsed,
    rendered,
    totals,
    value_of,
)
from services.websocket_service.workers.place import Place
from services.websocket_service.workers.worker_process import WorkerProcess

REPORT_TIMEOUT_S: Final = 1.0
"""A worker that does not answer within it is shown with what it has counted so far."""


class WorkerState(StrEnum):
    """What the worker of a place does."""

    STARTING = "starting"
    SERVING = "serving"
    SILENT = "silent"
    """It does not answer."""
    WAITING = "waiting"
    """To be started again."""


class SharedMetrics:
    """Asks the workers of all places; `restarts` counts those that had to be replaced."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._gone: Families = ()
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        self.restarts = 0

    def keep_counts(self, worker: WorkerProcess) -> None:
        """Go on counting what a worker that is gone has counted."""
        self._gone = merged([self._gone, totals(parsed(worker.report))])

    async def page(self) -> bytes:
        """The metrics of all together, as Prometheus text."""
        asked = [
            (place, place.worker)
            for place in self._places
            if place.worker is not None and place.worker.ready
        ]
        answers = await asyncio.gather(
            *(worker.answers(timeout_s=REPORT_TIMEOUT_S) for _, worker in asked)
        )
        connections: dict[int, float] = {}
        sources = [self._gone, tuple(self._own.collect())]
        for (place, worker), has_answered in zip(asked, answers, strict=True):
            if place.worker is worker:
                families = parsed(worker.report)
                sources.append(families if has_answered else totals(families))
                if has_answered:
                    connections[place.number] = value_of(families, "websocket_connections")
        return rendered((*merged(sources), *self._own_families(connections)))

    def _own_families(self, connections: Mapping[int, float]) -> Iterator[Metric]:
        states = Counter(self._state(place, connections) for place in self._places)
        workers = GaugeMetricFamily(
            "websocket_workers", "Worker processes now, by what they do", labels=["state"]
        )
        for state in WorkerState:
            workers.add_metric([state], states[state])
        yield workers
        yield CounterMetricFamily(
            "websocket_worker_restarts",
            "Workers that ended without having been told to",
            value=self.restarts,
        )
        by_worker = GaugeMetricFamily(
            "websocket_worker_connections", "Connections now in each worker", labels=["worker"]
        )
        for number, count in connections.items():
            by_worker.add_metric([str(number)], count)
        yield by_worker

    @staticmethod
    def _state(place: Place, answered: Container[int]) -> WorkerState:
        if place.number in answered:
            return WorkerState.SERVING
        if place.worker is None:
            return WorkerState.WAITING
        return WorkerState.SILENT if place.worker.ready else WorkerState.STARTING
