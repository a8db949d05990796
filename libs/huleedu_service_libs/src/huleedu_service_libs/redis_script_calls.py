"""Calls of Lua scripts as commands."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from redis.client import NEVER_DECODE

from huleedu_service_libs.redis_scripts import ScriptCall

AS_BYTES: Final = {NEVER_DECODE: True}
"""Option of a command: texts in its reply stay bytes."""

Argument = str | bytes | float


def script_command(call: ScriptCall, *, whole: bool) -> Sequence[Argument]:
    """EVAL with the body, or EVALSHA, which a server without the script answers with NOSCRIPT."""
    script = ("EVAL", call.script.body) if whole else ("EVALSHA", call.script.sha)
    return *script, len(call.keys), *call.keys, *call.args


def script_commands(calls: Iterable[ScriptCall]) -> Iterator[Sequence[Argument]]:
    """One command for each call, for one server in one round trip.

    Sent whole once, each script is there for the rest, also after a restart of Redis.
    """
    sent: set[str] = set()
    for call in calls:
        yield script_command(call, whole=call.script.sha not in sent)
        sent.add(call.script.sha)
