"""The metrics of several processes as those of one service.

Counters and histograms add up, those of processes that are gone included: they never go backwards.
Gauges add up too, save for what `GAUGE_RULES` says otherwise of.
"""

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

Rule = Callable[[float, float], float]


def add(one: float, other: float) -> float:
    """Both together."""
    return one + other


# min: true only where it is true of all. max: the worst, or the same everywhere.
GAUGE_RULES: Final = MappingProxyType[str, Rule](
    {
        "websocket_connections": add,
        "websocket_users": add,
        "websocket_handshakes": add,
        "websocket_waiting_bytes": add,
        "websocket_draining": max,
        "websocket_redis_connected": min,
        "websocket_redis_hears": min,
        "websocket_redis_canary_age_seconds": max,
        "websocket_subscribed_channels": add,
        "websocket_subscriptions": add,
        "websocket_token_keys": max,
        "websocket_key_set_age_seconds": max,
        "websocket_bridge_kafka_heard": min,
        "websocket_bridge_lag": add,
        "websocket_bridge_partitions": add,
        "process_virtual_memory_bytes": add,
        "process_resident_memory_bytes": add,
        "process_start_time_seconds": min,
        "process_open_fds": add,
        "process_max_fds": add,
        "python_info": max,
    }
)
_ADDITIVE_TYPES: Final = frozenset({"counter", "histogram"})

Families = tuple[Metric, ...]


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def parsed(page: bytes) -> Families:
    """The families of a page in Prometheus' text format."""
    return tuple(text_string_to_metric_families(page.decode()))


def rendered(families: Iterable[Metric]) -> bytes:
    """The page of these families."""
    return generate_latest(_Fixed(families))


def totals(families: Families) -> Families:
    """What remains of a process that is gone, or does not answer: all that only ever grows."""
    return tuple(family for family in families if family.type in _ADDITIVE_TYPES)


def merged(sources: Iterable[Families]) -> Families:
    """One family of each name; of each set of labels one sample."""
    names: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
    for families in sources:
        for family in families:
            rule = GAUGE_RULES.get(family.name, add)
            names.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            samples = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                known = samples.get(key)
                value = sample.value if known is None else rule(known.value, sample.value)
                samples[key] = Sample(sample.name, sample.labels, value)
    for name, family in names.items():
        family.samples = list(values[name].values())
    return tuple(names.values())


def value_of(families: Families, gauge: str) -> float:
    """The value of a gauge without labels; 0 where it is missing."""
    return sum(
        sample.value for family in families if family.name == gauge for sample in family.samples
    )
