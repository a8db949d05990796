"""The metrics of several processes as those of one."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from services.websocket_service.workers.aggregation import (
    Families,
    merged,
    parsed,
    rendered,
    totals,
    value_of,
)


def process(
    *, connections: float, closed: dict[str, float], hears: float = 1, latency: float = 0.5
) -> Families:
    counter = CounterMetricFamily("websocket_connections_closed", "Closed", labels=["code"])
    for code, value in closed.items():
        counter.add_metric([code], value)
    return (
        GaugeMetricFamily("websocket_connections", "Now", value=connections),
        GaugeMetricFamily("websocket_redis_hears", "1 if all is well", value=hears),
        GaugeMetricFamily("websocket_draining", "1 in a drain", value=1 - hears),
        counter,
        HistogramMetricFamily(
            "websocket_latency", "Seconds", buckets=[("1.0", 2), ("+Inf", 3)], sum_value=latency
        ),
    )


def test_what_can_be_added_is_added() -> None:
    """Connections, counters and histograms are the sums; a code that only one has seen is there."""
    page = rendered(
        merged(
            [
                process(connections=2, closed={"1000": 3}),
                process(connections=5, closed={"1000": 4, "1012": 1}, latency=0.25),
            ]
        )
    ).decode()
    assert "websocket_connections 7.0" in page
    assert 'websocket_connections_closed_total{code="1000"} 7.0' in page
    assert 'websocket_connections_closed_total{code="1012"} 1.0' in page
    assert 'websocket_latency_bucket{le="1.0"} 4.0' in page
    assert "websocket_latency_count 6.0" in page
    assert "websocket_latency_sum 0.75" in page
    assert page.count("# TYPE websocket_connections gauge") == 1


def test_one_deaf_worker_is_seen() -> None:
    """All is well only where it is with everybody."""
    families = merged(
        [process(connections=1, closed={}), process(connections=1, closed={}, hears=0)]
    )
    assert value_of(families, "websocket_redis_hears") == 0
    assert value_of(families, "websocket_draining") == 1


def test_a_page_can_be_read_again() -> None:
    """What one process writes is the same after another has read it."""
    page = rendered(process(connections=2, closed={"1000": 1e15 + 1}, latency=0.1 + 0.2))
    assert rendered(parsed(page)) == page


def test_the_dead_have_no_connections() -> None:
    """Of a process that is gone remains what it has counted, and no state."""
    remains = totals(parsed(rendered(process(connections=2, closed={"1000": 3}))))
    page = rendered(merged([remains, process(connections=1, closed={})])).decode()
    assert "websocket_connections 1.0" in page
    assert 'websocket_connections_closed_total{code="1000"} 3.0' in page
    assert "websocket_latency_count 6.0" in page
