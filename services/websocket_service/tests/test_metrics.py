"""What a scrape shows."""

import re
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from huleedu_service_libs.auth import KeyStatistics
from huleedu_service_libs.redis_subscriptions import SubscriptionStatistics
from services.websocket_service.bridge.statistics import BridgeStatistics, Result, Stage
from services.websocket_service.metrics import BridgeCollector, ServiceCollector
from services.websocket_service.tests.fakes import MemoryClient, Service
from services.websocket_service.workers.aggregation import GAUGE_RULES
from services.websocket_service.workers.shared_metrics import SharedMetrics

README = Path(__file__).parents[1] / "README.md"
ROW = r"^\| `(websocket_\w+)(?:\{\w+\})?` \| (.+) \|$"

SUBSCRIPTIONS = SubscriptionStatistics(
    connected=True,
    hears=True,
    channels=2,
    subscriptions=3,
    messages=40,
    bytes=500,
    overflows=6,
    connections_opened=7,
    times_deaf=8,
    silent_for_s=0.8,
    canary_age_s=0.9,
)

BRIDGE = BridgeStatistics(
    events={Result.PUBLISHED: 5, Result.DUPLICATE: 6, Result.DEAD_LETTERED: 7},
    failures={Stage.FETCH: 1, Stage.PUBLISH: 2, Stage.DEAD_LETTER: 3, Stage.COMMIT: 4},
    kafka_heard=True,
    lag=8,
    partitions=9,
)

KEYS = KeyStatistics(keys=2, age_s=10, fetches_succeeded=3, fetches_failed=4)


def full_registry(service: Service) -> CollectorRegistry:
    """All of ours, the bridge's included."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service.hub.statistics, lambda: SUBSCRIPTIONS, lambda: KEYS))
    registry.register(BridgeCollector(lambda: BRIDGE))
    return registry


def scrape(service: Service) -> dict[str, Metric]:
    text = generate_latest(full_registry(service)).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


async def test_state_is_read_when_scraped() -> None:
    """What is shown is what is there at that moment, and zero when everybody has left."""
    service = Service()
    first = await service.connect("teacher-1", v1=True)
    second = await service.connect("teacher-1")
    families = scrape(service)
    assert value(families, "websocket_connections") == 2
    assert value(families, "websocket_users") == 1
    assert value(families, "websocket_draining") == 0
    assert value(families, "websocket_waiting_bytes") == 0
    assert value(families, "websocket_connections_opened_total", dialect="plain") == 1
    assert value(families, "websocket_connections_opened_total", dialect="huleedu.notify.v1") == 1
    assert value(families, "websocket_token_checks_total", result="valid") == 2

    payload = b'{"event":"a","data":{}}'
    assert service.backplane.publish("teacher-1", payload) == 2
    await first.text()
    await second.text()
    for client in (first, second):
        client.leave(1000)
        await client.ended()
    families = scrape(service)
    assert value(families, "websocket_connections") == 0
    assert value(families, "websocket_users") == 0
    assert value(families, "websocket_handshakes") == 0
    assert value(families, "websocket_connections_closed_total", code="1000") == 2
    assert value(families, "websocket_connection_duration_seconds_count") == 2
    assert value(families, "websocket_deliveries_total") == 2
    assert value(families, "websocket_delivered_bytes_total") == 2 * len(payload)
    assert value(families, "websocket_publish_to_write_seconds_count") == 2


async def test_refusals_are_told_apart() -> None:
    """The reasons for refusals, and the results of token checks, can be counted."""
    service = Service()
    for tokens in ((), ("unknown",), ("a", "b")):
        await service.begin(MemoryClient(), *tokens).closed()
    families = scrape(service)
    for reason in ("missing_token", "invalid_token", "conflicting_credentials"):
        assert value(families, "websocket_handshakes_refused_total", reason=reason) == 1
        assert value(families, "websocket_token_checks_total", result=reason) == 1
    assert value(families, "websocket_connections") == 0


async def test_what_a_dialect_cannot_carry_is_counted() -> None:
    """A payload that could not be shown to anybody does not vanish without a trace."""
    service = Service()
    client = await service.connect()
    service.backplane.publish("teacher-1", b"\xff")
    service.backplane.publish("teacher-1", b"next")
    assert await client.text() == "next"
    assert value(scrape(service), "websocket_undeliverable_total") == 1
    client.leave()
    await client.ended()


async def test_what_became_of_cursors_and_losses() -> None:
    """Resumes are counted by result, losses on open connections by reason, replays one by one."""
    service = Service()
    backplane = service.backplane
    cursor = backplane.notify("teacher-1")
    for _ in range(3):
        backplane.notify("teacher-1")
    for given in (cursor, "unknown", None):
        client = service.begin(
            MemoryClient(), service.issuer.token("teacher-1"), v1=True, cursor=given
        )
        assert (await client.frame())["type"] == "welcome"
        if given == cursor:
            for _ in range(3):
                await client.text()
        client.leave()
        await client.ended()
    client = await service.connect("teacher-1", v1=True)
    backplane.histories.clear()
    backplane.reconnect()
    assert (await client.frame())["type"] == "resync"
    client.leave()
    await client.ended()

    families = scrape(service)
    assert value(families, "websocket_resumes_total", result="resumed") == 1
    assert value(families, "websocket_resumes_total", result="cursor_unknown") == 1
    assert value(families, "websocket_resyncs_total", reason="history_lost") == 1
    assert value(families, "websocket_replayed_total") == 3
    assert value(families, "websocket_deliveries_total") == 3
    # Replayed ones are as old as their client was long away.
    assert value(families, "websocket_publish_to_write_seconds_count") == 0


async def test_redis_side() -> None:
    """The connection to Redis is shown with what it has brought."""
    families = scrape(Service())
    assert value(families, "websocket_redis_connected") == 1
    assert value(families, "websocket_redis_hears") == 1
    assert value(families, "websocket_redis_canary_age_seconds") == 0.9
    assert value(families, "websocket_redis_deaf_total") == 8
    assert value(families, "websocket_subscribed_channels") == 2
    assert value(families, "websocket_subscriptions") == 3
    assert value(families, "websocket_redis_messages_total") == 40
    assert value(families, "websocket_subscription_overflows_total") == 6
    assert value(families, "websocket_redis_connections_opened_total") == 7


async def test_keys() -> None:
    """What tokens are verified with, and how the key server answers."""
    families = scrape(Service())
    assert value(families, "websocket_token_keys") == 2
    assert value(families, "websocket_key_set_age_seconds") == 10
    assert value(families, "websocket_key_set_fetches_total", result="succeeded") == 3
    assert value(families, "websocket_key_set_fetches_total", result="failed") == 4


async def test_the_bridge() -> None:
    """What has become of events, what had to be tried again, and whether Kafka is there."""
    families = scrape(Service())
    assert value(families, "websocket_bridge_events_total", result="published") == 5
    assert value(families, "websocket_bridge_events_total", result="duplicate") == 6
    assert value(families, "websocket_bridge_events_total", result="dead_lettered") == 7
    assert value(families, "websocket_bridge_failures_total", stage="commit") == 4
    assert value(families, "websocket_bridge_kafka_heard") == 1
    assert value(families, "websocket_bridge_lag") == 8
    assert value(families, "websocket_bridge_partitions") == 9


async def test_names_help_and_labels() -> None:
    """Each metric has a help text and units in its name, and no label names a user."""
    service = Service()
    user = "user-with-a-name"
    client = await service.connect(user, v1=True)
    await service.begin(MemoryClient(), f"token-of-{user}").closed()
    families = scrape(service)

    assert all(family.documentation for family in families.values())
    labels = {
        (label, text)
        for family in families.values()
        for sample in family.samples
        for label, text in sample.labels.items()
    }
    assert {label for label, _ in labels} <= {"dialect", "code", "reason", "result", "stage", "le"}
    assert not [text for _, text in labels if user in text]
    client.leave()
    await client.ended()


async def test_readme_has_each_family() -> None:
    """The README's table has each metric's name and what it says of itself, and no other."""
    registry = full_registry(Service())
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.documentation
        for family in registry.collect()
    }
    page = README.read_text(encoding="utf-8")
    _, _, section = page.partition("### Metrics\n")
    section, _, rest = section.partition("### ")
    assert dict(re.findall(ROW, section, re.MULTILINE)) == told

    text = (await SharedMetrics([]).page()).decode()
    of_workers = set(re.findall(r"^# HELP (websocket_\w+)", text, re.MULTILINE))
    assert {name for name, _ in re.findall(ROW, rest, re.MULTILINE)} == of_workers


async def test_each_gauge_can_be_put_together() -> None:
    """What a gauge of several workers says has been thought of for each."""
    registry = full_registry(Service())
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    families = list(registry.collect())
    assert {family.name for family in families if family.type == "gauge"} == GAUGE_RULES.keys()
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}


async def test_latency_is_from_publication() -> None:
    """Latency counts from the publisher's own time; a fast clock makes it no less than zero."""
    service = Service()
    client = await service.connect()
    for timestamp in ("2999-01-01T00:00:00+00:00", "2000-01-01T00:00:00+00:00"):
        service.backplane.notify("teacher-1", timestamp=timestamp)
        await client.text()
    client.leave()
    await client.ended()

    families = scrape(service)
    assert value(families, "websocket_publish_to_write_seconds_count") == 2
    # The one from the future counts as no time at all, the one from 2000 is beyond all bounds.
    assert value(families, "websocket_publish_to_write_seconds_sum") > 0
    assert value(families, "websocket_publish_to_write_seconds_bucket", le="0.001") == 1
    assert value(families, "websocket_publish_to_write_seconds_bucket", le="10.0") == 1
