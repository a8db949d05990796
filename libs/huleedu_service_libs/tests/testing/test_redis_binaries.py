from __future__ import annotations

import importlib.util
import subprocess
from typing import TYPE_CHECKING

from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server

if TYPE_CHECKING:
    import pytest


def test_valkey() -> None:
    """The packaged Valkey is one."""
    binary = packaged_valkey_server()
    assert binary is not None
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    assert version.stdout.startswith("Valkey server v=")


def test_no_valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package there is none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert packaged_valkey_server() is None
