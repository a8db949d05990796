"""Command connections to whatever an address names."""

from functools import partial
from typing import Any

from redis.asyncio import BlockingConnectionPool

from huleedu_service_libs.redis_address import Endpoint, RedisAddress, Topology
from huleedu_service_libs.redis_cluster import ClusterRedis
from huleedu_service_libs.redis_cluster_routes import ClusterRoutes
from huleedu_service_libs.redis_deadlines import DeadlineRedis
from huleedu_service_libs.redis_sentinel import SentinelSet
from huleedu_service_libs.redis_sentinel_connection import MasterConnection, MasterSSLConnection


def command_connections(
    address: RedisAddress,
    sentinels: SentinelSet,
    *,
    client_name: str,
    timeout_s: float,
    max_connections: int,
) -> DeadlineRedis | ClusterRedis:
    """Opens none yet; at most `max_connections` of them at a time, on a Cluster to each node.

    `sentinels` are asked only where the address says that there are any.
    """
    options: dict[str, Any] = {
        "client_name": client_name,
        "max_connections": max_connections,
        # How long closing one may take; the call has a deadline of its own.
        "socket_connect_timeout": timeout_s,
        "timeout": None,
    }
    match address.topology:
        case Topology.SERVER:
            endpoint = None if address.is_unix_socket else address.endpoints[0]
            return DeadlineRedis(_pool(address, options, endpoint), timeout_s)
        case Topology.SENTINEL:
            options |= {
                "connection_class": MasterSSLConnection if address.uses_tls else MasterConnection,
                "sentinels": sentinels,
            }
            return DeadlineRedis(_pool(address, options), timeout_s, doubt=sentinels.doubt)
        case Topology.CLUSTER:
            routes = ClusterRoutes(address, partial(_pool, address, options), timeout_s)
            return ClusterRedis(routes, timeout_s)


def _pool(
    address: RedisAddress, options: dict[str, Any], endpoint: Endpoint | None = None
) -> BlockingConnectionPool:
    return BlockingConnectionPool(
        **{
            "connection_class": address.connection_class(),
            **address.connection_arguments(endpoint),
            **options,
        }
    )
