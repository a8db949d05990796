"""CPU time and memory of a process and all its descendants, from `/proc` (Linux)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


def cpu_time_s(pid: int) -> float:
    """Seconds on a CPU, user and system, of those that live. Resolution: a tick, mostly 10 ms."""
    return sum(_cpu_ticks(one) for one in _descendants(pid)) / _TICKS_PER_S


def pss_kib(pid: int) -> int:
    """Resident KiB; a page that several processes share counts in parts."""
    return sum(_pss_kib(one) for one in _descendants(pid))


def rss_kib(pid: int) -> int:
    """Resident KiB, each process' own; cheaper to read than `pss_kib`."""
    return sum(_rss_pages(one) for one in _descendants(pid)) * _PAGE_KIB


def open_files(pid: int) -> int:
    """File descriptors, sockets among them."""
    return sum(_file_descriptors(one) for one in _descendants(pid))


def _descendants(pid: int) -> Iterator[int]:
    """The process and those below it; none of a process that has ended."""
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text(encoding="ascii").split():
                yield from _descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


def _cpu_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name before the last parenthesis may hold anything.
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _pss_kib(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def _rss_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _file_descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0
