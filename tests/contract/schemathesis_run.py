"""A server is asked whatever its OpenAPI document allows, and what it does not."""

import asyncio
import sys
from pathlib import Path
from typing import Final

_SCHEMATHESIS: Final = str(Path(sys.executable).with_name("schemathesis"))
# Every check, none left out; the same requests each time.
_OPTIONS: Final = (
    *("--checks", "all"),
    *("--max-examples", "60"),
    "--generation-deterministic",
    "--continue-on-failure",
    "--no-color",
)


async def checked_against_document(url: str, *, header: str, folder: Path) -> str:
    """What schemathesis says of the server whose document is at `url`, and that all is well.

    Each request has the header. In the folder there may be a `schemathesis.toml`.
    """
    process = await asyncio.create_subprocess_exec(
        *(_SCHEMATHESIS, "run", url, "-H", header, *_OPTIONS),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()
