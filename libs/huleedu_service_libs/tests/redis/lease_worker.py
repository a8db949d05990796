"""A process that tries to connect one user many times: see `test_lease_processes`."""

import asyncio
import sys

from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.redis_client import RedisClient


async def _line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(redis_url: str, name: str, attempts: int, duration_s: float) -> None:
    async with (
        RedisClient(client_id=name, redis_url=redis_url) as client,
        ConnectionLeases(client, duration_s=duration_s) as leases,
    ):
        await client.ping()
        _say("ready")
        await _line()
        answers = await asyncio.gather(
            *(leases.acquire("teacher-1", f"{name}-{n}", limit=5) for n in range(attempts))
        )
        _say(*answers)
        await _line()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
