"""Sizes and durations of a run."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from huleedu_service_libs.redis_server import find_redis_server, installed_redis_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    redis_binary: Path
    service_root: Path | None
    """A checkout whose code the service runs; None: this one's."""
    repetitions: int
    seconds: float
    """Of each load that is measured."""
    connections: int
    offered_per_s: float
    """Deliveries, where the load is fixed."""
    window: int
    """Deliveries that the publisher may be ahead of the clients."""
    client_processes: int
    storm_connections: int
    idle_connections: int
    idle_seconds: float
    slow_readers: int
    slow_seconds: float

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """The arguments that `of` reads."""
        add = parser.add_argument
        add("--quick", action="store_true", help="shorter, once, the nearest peers")
        add("--repetitions", type=int, default=2)
        add("--seconds", type=float, default=2.0, help="of each load")
        add("--connections", type=int, default=500, help="in fan-out, latency and workers")
        add("--offered", type=float, default=5000.0, help="deliveries per second at fixed load")
        add("--window", type=int, default=20_000, help="deliveries ahead of the clients")
        add("--client-processes", type=int, default=1, help="in fan-out")
        add("--storm-connections", type=int, default=2000, help="in storm and idle-memory")
        add("--idle-connections", type=int, default=2000, help="in idle-cpu")
        add("--idle-seconds", type=float, default=30.0)
        add("--slow-readers", type=int, default=200)
        add("--slow-seconds", type=float, default=30.0)
        add("--service-root", type=Path, help="a checkout whose service is measured")
        add("--redis", type=Path, help="redis-server; default: that on the PATH")

    @classmethod
    def of(cls, given: argparse.Namespace) -> Self:
        """As parsed."""
        whole = cls(
            redis_binary=given.redis or installed_redis_server() or find_redis_server(),
            service_root=given.service_root and given.service_root.resolve(),
            repetitions=given.repetitions,
            seconds=given.seconds,
            connections=given.connections,
            offered_per_s=given.offered,
            window=given.window,
            client_processes=given.client_processes,
            storm_connections=given.storm_connections,
            idle_connections=given.idle_connections,
            idle_seconds=given.idle_seconds,
            slow_readers=given.slow_readers,
            slow_seconds=given.slow_seconds,
        )
        return whole.quick() if given.quick else whole

    def quick(self) -> Self:
        """Less of everything."""
        return replace(
            self,
            repetitions=1,
            seconds=0.8,
            storm_connections=min(self.storm_connections, 500),
            idle_connections=min(self.idle_connections, 500),
            idle_seconds=5.0,
            slow_readers=min(self.slow_readers, 100),
            slow_seconds=4.0,
        )
