"""The soak, for a few seconds."""

import asyncio
import json
import sys
from pathlib import Path

from tests.service_process import REPO


async def test_soak(tmp_path: Path) -> None:
    """A soak ends by itself, tells what it has seen, and finds everything in order."""
    outcome_file = tmp_path / "outcome.json"
    command = ("--minutes", "0.05", "--topology", "durable", "--json", str(outcome_file))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.load.soak", *command),
        cwd=REPO,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed
    [outcome] = json.loads(outcome_file.read_text())
    assert outcome["faults"]
    assert outcome["figures"]["published"] > 0
    assert outcome["figures"]["lost"] == 0
    assert b"lost without notice   0\n" in printed
