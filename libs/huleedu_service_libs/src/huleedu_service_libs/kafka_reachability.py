from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError

from huleedu_service_libs.kafka_settings import KafkaConnection


async def why_unreachable(connection: KafkaConnection, *, timeout_s: float) -> str:
    """What each of the bootstrap servers says that takes no connection: aiokafka keeps that back.

    Empty where all take one. Each server gets `timeout_s` for each step.
    """
    options = connection.client_options() | {"request_timeout_ms": round(timeout_s * 1000)}
    reasons = []
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers"), randomize=False):
        try:
            opened = await create_conn(host, port, **options)
            await opened.close()
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            reasons.append(f"{host}:{port}: {error!r}")
    return "; ".join(reasons)
