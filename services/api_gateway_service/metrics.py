"""Prometheus metrics of the gateway. No label names a user, a batch or a request."""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

# From a local answer to the longest that a client of ours waits.
_DOWNSTREAM_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def process_registry() -> CollectorRegistry:
    """A registry that tells of this process: memory, CPU time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class GatewayMetrics:
    """What the gateway counts besides HTTP requests, which their middleware counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.events_published = Counter(
            "gateway_events_published_total",
            "Commands handed to Kafka",
            ["topic", "result"],
            registry=registry,
        )
        """`result`: success or failure."""
        self.kafka_connected = Gauge(
            "gateway_kafka_connected", "1 while Kafka answers", registry=registry
        )
        self.downstream_calls = Counter(
            "gateway_downstream_service_calls_total",
            "Calls to other services",
            ["service", "method", "endpoint", "status_code"],
            registry=registry,
        )
        """`status_code` is the answer's, or in a word why there is none: timeout, connection_error,
        circuit_open, invalid_response."""
        self.downstream_call_duration = Histogram(
            "gateway_downstream_service_call_duration_seconds",
            "How long calls to other services took",
            ["service", "method", "endpoint"],
            buckets=_DOWNSTREAM_BUCKETS_S,
            registry=registry,
        )
        self.circuit_state = Gauge(
            "gateway_circuit_breaker_state",
            "Whether another service is asked: 0 by all, 1 by one at a time, 2 not at present",
            ["service"],
            registry=registry,
        )
        self.api_errors = Counter(
            "gateway_api_errors_total",
            "Error responses",
            ["endpoint", "error_code"],
            registry=registry,
        )
        self.rate_limits_unchecked = Counter(
            "gateway_rate_limits_unchecked_total",
            "Requests that were let through because Redis could not be asked",
            registry=registry,
        )
