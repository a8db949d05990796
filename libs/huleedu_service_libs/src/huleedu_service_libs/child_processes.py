"""Child processes that do not outlive the process that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1

# Loaded here and not in the forked child, where another thread's lock may be held for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def signal_at_end_of_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn`: the child gets `number` when this process dies. None but on Linux.

    A killed parent can't stop its children; the kernel can, and even a stopped child with SIGKILL.
    """
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl
    parent = os.getpid()

    def ask_the_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)  # it died before the request

    return ask_the_kernel
