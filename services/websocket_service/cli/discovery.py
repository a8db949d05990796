"""How `token`, `notify`, `tail` and `history` find a running `dev`.

What always holds:

1. A file is written whole before it has its name: a reader never sees half of it.
2. A running `dev` holds a lock on its file. The kernel releases it however the process ends, so
   a file without a lock is stale. A process id would not tell: it is reused, it stays while a
   zombie waits, and it means nothing across containers that share the directory.
3. The file holds a secret: only its owner can read it, and nothing is believed that another user
   could have put there.
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER_NAME = "websocket-service"


class UntrustedFolderError(Exception):
    """Others can write where a running `dev` is announced; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDev:
    """One running `websocket-service dev`: what a client or a publisher needs to know of it."""

    url: str
    redis_url: str
    channel_prefix: str
    jwt_secret: str = field(repr=False)
    jwt_algorithm: str
    jwt_audience: str
    jwt_issuer: str
    pid: int
    port: int


def discovery_folder() -> Path:
    """Where running instances are announced; it need not exist.

    `$XDG_RUNTIME_DIR/websocket-service`, or a folder of this user's in the temp directory where
    that variable is unset or (after `su`) names another user's directory.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "-")
    if runtime.is_absolute() and _is_ours(runtime):
        return runtime / FOLDER_NAME
    return Path(tempfile.gettempdir()) / f"{FOLDER_NAME}-{os.geteuid()}"


def _require_private(folder: Path) -> None:
    if folder.lstat().st_mode & 0o077 or not _is_ours(folder):
        raise UntrustedFolderError(
            f"{folder} is not a directory that only you can use: remove it, or set "
            "XDG_RUNTIME_DIR to a directory of your own"
        )


def _is_ours(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


@contextlib.contextmanager
def announced(instance: RunningDev) -> Iterator[Path]:
    """While inside, `running()` lists the instance. Yields the file's path.

    Makes the folder, mode 0700, if it is missing; the last to leave removes it.

    Raises UntrustedFolderError if the folder is somebody else's or open to others.
    """
    # A name is never used twice: whoever removes a stale file can't hit a newer one.
    path = discovery_folder() / f"{secrets.token_hex(8)}.json"
    unfinished = path.with_suffix(".tmp")
    descriptor = _create(unfinished)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(instance), file)
        file.flush()
        unfinished.rename(path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another one is announced there
                path.parent.rmdir()


def _create(path: Path) -> int:
    while True:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        # The last to leave may remove the folder at any point in between.
        with contextlib.suppress(FileNotFoundError):
            _require_private(path.parent)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def running() -> list[RunningDev]:
    """The instances that run now, newest first; stale files are removed on the way.

    Raises UntrustedFolderError.
    """
    folder = discovery_folder()
    try:
        _require_private(folder)
    except FileNotFoundError:
        return []
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            started_ns, instance = _read(path)
            if instance is not None:
                found.append((started_ns, instance))
    return [instance for _, instance in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _read(path: Path) -> tuple[int, RunningDev | None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, encoding="utf-8") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            return 0, None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return status.st_mtime_ns, RunningDev(**json.load(file))
        path.unlink(missing_ok=True)
        return 0, None
