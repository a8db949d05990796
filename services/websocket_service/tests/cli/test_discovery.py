from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from services.websocket_service.cli.discovery import (
    RunningDev,
    UntrustedFolderError,
    announced,
    discovery_folder,
    running,
)

if TYPE_CHECKING:
    from pathlib import Path

INSTANCE = RunningDev(
    url="ws://127.0.0.1:8081/ws",
    redis_url="redis://127.0.0.1:6379",
    channel_prefix="ws",
    jwt_secret="a secret",
    jwt_algorithm="HS256",
    jwt_audience="audience",
    jwt_issuer="issuer",
    pid=1,
    port=8081,
)


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_what_is_announced_is_found_until_it_ends() -> None:
    """A running instance is found with everything that it announced, and not afterwards."""
    with announced(INSTANCE) as path:
        assert running() == [INSTANCE]
    assert running() == []
    assert not path.parent.exists()


def test_the_newest_instance_comes_first() -> None:
    """Whoever starts a second instance means that one from then on."""
    second = replace(INSTANCE, port=8082)
    with announced(INSTANCE) as first_path, announced(second):
        os.utime(first_path, ns=(1, 1))
        assert running() == [second, INSTANCE]


def test_only_its_owner_can_read_the_secret() -> None:
    """The file and its folder are closed to everybody else."""
    with announced(INSTANCE) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_whose_writer_is_gone_is_ignored_and_removed() -> None:
    """What a killed instance has left behind misleads nobody, though its id may be in use."""
    folder = discovery_folder()
    folder.mkdir(mode=0o700)
    stale = folder / "left.json"
    stale.write_text(json.dumps(asdict(replace(INSTANCE, pid=os.getpid()))))
    stale.chmod(0o600)
    assert running() == []
    assert not stale.exists()


def test_a_folder_that_others_can_enter_is_not_trusted() -> None:
    """The message names the folder and says what to do."""
    folder = discovery_folder()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UntrustedFolderError, match="remove it, or set XDG_RUNTIME_DIR"):
        running()
    with pytest.raises(UntrustedFolderError), announced(INSTANCE):
        pass


def test_a_link_to_another_folder_is_not_trusted(runtime_folder: Path) -> None:
    """A link in a place that others can write to may lead anywhere."""
    elsewhere = runtime_folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (runtime_folder / "websocket-service").symlink_to(elsewhere)
    with pytest.raises(UntrustedFolderError):
        running()


def test_a_linked_file_is_not_followed(runtime_folder: Path) -> None:
    """A link among the announcements is not read."""
    with announced(INSTANCE) as path:
        path.rename(runtime_folder / "moved.json")
        path.symlink_to(runtime_folder / "moved.json")
        assert running() == []


def test_a_file_that_is_no_announcement_is_ignored() -> None:
    """Rubbish in the folder does not keep the running instance from being found."""
    with announced(INSTANCE) as path:
        path.with_name("rubbish.json").write_text("{")
        assert running() == [INSTANCE]


@pytest.mark.parametrize("value", ["", "relative", "/nonexistent"])
def test_without_a_runtime_folder_the_temp_directory_serves(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user has a folder of their own there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with announced(INSTANCE) as path:
        assert path.parent.parent == tmp_path
        assert str(os.geteuid()) in path.parent.name
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_secret_is_not_in_the_representation() -> None:
    """An instance can be logged."""
    assert INSTANCE.jwt_secret not in repr(INSTANCE)
