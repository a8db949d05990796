"""Whether a replica has what its master has, and how to make sure that it has not."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.polling import until

# No password of a real server: with it a replica can't connect to its master.
WRONG_PASSWORD: Final = "wrong"  # noqa: S105


async def follows(replica: Admin, master_port: int) -> bool:
    """Whether the server replicates that master, and has all that it had when it connected."""
    role = await replica.ask("ROLE")
    return bool(role[0] == "slave" and role[2] == master_port and role[3] == "connected")


async def cut_replication(master: Admin, replicas: Sequence[Admin]) -> None:
    """Disconnect the replicas until `mend_replication()`: they get no later write."""
    for replica in replicas:
        await replica.config_set("masterauth", WRONG_PASSWORD)
    await master.ask("CLIENT", "KILL", "TYPE", "replica")
    for replica in replicas:
        await until(partial(_is_disconnected, replica))


async def mend_replication(replica: Admin, master_port: int, master_password: str) -> None:
    """Let the replica connect again, and wait until it has what the master has."""
    await replica.config_set("masterauth", master_password)
    await until(partial(follows, replica, master_port))


async def _is_disconnected(replica: Admin) -> bool:
    role = await replica.ask("ROLE")
    # It may have been made a master meanwhile.
    return bool(role[0] != "slave" or role[3] != "connected")
