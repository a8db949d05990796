"""How many files, and therefore connections, the operating system lets this process have."""

import resource
from typing import Final

# Beside the clients: Redis, listeners, standard streams, modules being imported.
OTHERS: Final = 100


def allow_connections(count: int) -> int:
    """Raise the soft limit as far as `count` connections need and the hard one allows.

    Returns how many connections there is room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHERS
    if soft == resource.RLIM_INFINITY:
        return count
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(count, max(0, soft - OTHERS))
