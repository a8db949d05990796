"""Prometheus metrics, read from the state when they are scraped. No label names a user."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from huleedu_service_libs.auth import KeyStatistics
from huleedu_service_libs.redis_subscriptions import SubscriptionStatistics
from services.websocket_service.bridge.statistics import BridgeStatistics
from services.websocket_service.histogram import HistogramSnapshot
from services.websocket_service.hub import ConnectionHub, HubStatistics


class OwnMetrics:
    """Those of a service that runs in this process alone: a `MetricsProtocol`."""

    def __init__(self, registry: CollectorRegistry, hub: ConnectionHub) -> None:
        self._registry = registry
        self._hub = hub

    async def page(self) -> bytes:
        """What the registry holds now."""
        return generate_latest(self._registry)

    async def connections(self) -> int:
        """Those of the hub."""
        return self._hub.statistics().connections


class ServiceCollector(Collector):
    """Turns snapshots into metrics."""

    def __init__(
        self,
        connections: Callable[[], HubStatistics],
        subscriptions: Callable[[], SubscriptionStatistics],
        keys: Callable[[], KeyStatistics],
    ) -> None:
        self._connections = connections
        self._subscriptions = subscriptions
        self._keys = keys

    def collect(self) -> Iterable[Metric]:
        """One family after the other."""
        yield from _connection_metrics(self._connections())
        yield from _subscription_metrics(self._subscriptions())
        yield from _key_metrics(self._keys())


class BridgeCollector(Collector):
    """Turns snapshots of the bridge into metrics."""

    def __init__(self, bridge: Callable[[], BridgeStatistics]) -> None:
        self._bridge = bridge

    def collect(self) -> Iterable[Metric]:
        """One family after the other."""
        bridge = self._bridge()
        yield _counters(
            "websocket_bridge_events",
            "Events of Kafka that are done, where the bridge runs",
            "result",
            bridge.events,
        )
        yield _counters(
            "websocket_bridge_failures",
            "What the bridge had to try again",
            "stage",
            bridge.failures,
        )
        yield _gauge(
            "websocket_bridge_kafka_heard",
            "1 while Kafka answers and the consumer group has let the bridge in",
            bridge.kafka_heard,
        )
        yield _gauge("websocket_bridge_lag", "Events that wait for the bridge", bridge.lag)
        yield _gauge(
            "websocket_bridge_partitions", "Partitions that the bridge reads", bridge.partitions
        )


def _connection_metrics(hub: HubStatistics) -> Iterable[Metric]:
    yield _gauge("websocket_connections", "Connections now", hub.connections)
    yield _gauge("websocket_users", "Users with a connection now, in each worker", hub.users)
    yield _gauge(
        "websocket_handshakes", "Sockets being opened, refused or closed now", hub.handshakes
    )
    yield _gauge("websocket_waiting_bytes", "Bytes waiting for their clients", hub.waiting_bytes)
    yield _gauge("websocket_draining", "1 once a shutdown has begun", hub.draining)
    yield _counters("websocket_connections_opened", "Connections opened", "dialect", hub.opened)
    yield _counters("websocket_connections_closed", "Connections closed", "code", hub.closed)
    yield _counters("websocket_handshakes_refused", "Handshakes refused", "reason", hub.refused)
    yield _counters("websocket_token_checks", "Tokens checked", "result", hub.token_checks)
    yield _counters(
        "websocket_token_renewals", "Tokens sent on open connections", "result", hub.token_renewals
    )
    yield _counter("websocket_deliveries", "Payloads written to a connection", hub.deliveries)
    yield _counter("websocket_delivered_bytes", "Bytes of those payloads", hub.delivered_bytes)
    yield _counter(
        "websocket_undeliverable",
        "Payloads that a connection's dialect can't carry",
        hub.undeliverable,
    )
    yield _counters("websocket_resumes", "Cursors given at a handshake", "result", hub.resumes)
    yield _counters(
        "websocket_resyncs", "Open connections told that some may be missing", "reason", hub.resyncs
    )
    yield _counter("websocket_replayed", "Notifications taken from the history", hub.replayed)
    yield _histogram(
        "websocket_publish_to_write_seconds",
        "From publication (its timestamp, else its arrival from Redis) to the socket write",
        hub.latency,
    )
    yield _histogram(
        "websocket_connection_duration_seconds", "How long connections lasted", hub.duration
    )


def _subscription_metrics(hub: SubscriptionStatistics) -> Iterable[Metric]:
    yield _gauge("websocket_redis_connected", "1 while there is a connection", hub.connected)
    yield _gauge("websocket_redis_hears", "1 while what is published is proven to come", hub.hears)
    if hub.canary_age_s is not None:
        yield _gauge(
            "websocket_redis_canary_age_seconds",
            "Since the last proof: a payload published for the purpose and heard",
            hub.canary_age_s,
        )
    yield _counter(
        "websocket_redis_deaf",
        "Subscription connections replaced because they answered but heard nothing",
        hub.times_deaf,
    )
    yield _gauge("websocket_subscribed_channels", "Channels wanted from Redis", hub.channels)
    yield _gauge(
        "websocket_subscriptions",
        "Connections that want them, and one for what is said to all processes",
        hub.subscriptions,
    )
    yield _counter("websocket_redis_messages", "Payloads received from Redis", hub.messages)
    yield _counter(
        "websocket_redis_connections_opened",
        "Subscription connections opened to Redis",
        hub.connections_opened,
    )
    yield _counter(
        "websocket_subscription_overflows",
        "Connections that took payloads too slowly from the reader",
        hub.overflows,
    )


def _key_metrics(keys: KeyStatistics) -> Iterable[Metric]:
    yield _gauge("websocket_token_keys", "Keys that tokens are verified with", keys.keys)
    if keys.age_s is not None:
        yield _gauge(
            "websocket_key_set_age_seconds", "Since the key server's last answer", keys.age_s
        )
    yield _counters(
        "websocket_key_set_fetches",
        "Times that the key server was asked",
        "result",
        {"succeeded": keys.fetches_succeeded, "failed": keys.fetches_failed},
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([str(key)], value)
    return family


def _histogram(name: str, text: str, snapshot: HistogramSnapshot) -> Metric:
    return HistogramMetricFamily(
        name, text, buckets=list(snapshot.buckets), sum_value=snapshot.total
    )
