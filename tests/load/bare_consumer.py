"""A process that reads and commits as the bridge does, and does nothing with what it reads.

    python -m tests.load.bare_consumer SERVERS TOPIC REDIS_URL

Says at each record whose key is `LAST` that it was there.
"""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer
from redis.asyncio import Redis

from huleedu_service_libs.serving.hypercorn_server import loop_factory
from services.websocket_service.implementations.kafka_events import (
    MAX_BATCH_RECORDS,
    POLL_INTERVAL_S,
)
from tests.load.bridge_events import LAST, LAST_CHANNEL


async def main(bootstrap_servers: str, topic: str, redis_url: str) -> None:
    """Until it is killed."""
    async with (
        Redis.from_url(redis_url) as redis,
        AIOKafkaConsumer(
            topic,
            bootstrap_servers=bootstrap_servers,
            group_id="bare",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
        ) as consumer,
    ):
        while True:
            batch = await consumer.getmany(
                timeout_ms=round(POLL_INTERVAL_S * 1000), max_records=MAX_BATCH_RECORDS
            )
            if batch:
                await consumer.commit()
            for records in batch.values():
                if any(record.key == LAST for record in records):
                    await redis.publish(LAST_CHANNEL, b"")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(*sys.argv[1:]))
