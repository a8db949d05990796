"""Whether replicas have what their master has."""

from huleedu_service_libs.testing.admin import Admin
from tests.fault.peers import until


async def is_replicated(master: Admin) -> None:
    """Return once every replica has acknowledged what the master has at this moment."""
    _, offset, _ = await master.ask("ROLE")

    async def holds() -> bool:
        _, _, replicas = await master.ask("ROLE")
        return bool(replicas) and all(int(acknowledged) >= offset for *_, acknowledged in replicas)

    await until(holds)
