"""The CPU time of a Redis."""

from pathlib import Path


def cpu_time_us(pid: int) -> float:
    """Microseconds on a CPU of the main thread, the one that carries out commands.

    The first number of `/proc/<pid>/schedstat`, in nanoseconds there; Linux only.
    """
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1000
