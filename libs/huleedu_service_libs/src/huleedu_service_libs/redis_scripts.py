"""Lua scripts as values: a text, the name that Redis gives it, and calls of it."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_JOINED_CALLS: Final = 16
"""So many publications take Redis 0.1 ms, in which it serves nobody else."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script; `sha` is known without asking Redis."""

    body: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One call: keys of one hash slot, and arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | bytes | float] = ()
    joint: Script | None = None
    """Does several such calls in one, see `JoinedCalls`."""


@dataclass(frozen=True, slots=True)
class JoinedCalls:
    """Calls that are made as one: all their keys, all their arguments, a list of their replies.

    For any Redis but a Cluster, where the keys of one call share a slot. It saves Redis 1.5 µs
    for each call.
    """

    call: ScriptCall
    count: int = 1

    @classmethod
    def of(cls, calls: Sequence[ScriptCall]) -> "list[JoinedCalls]":
        """The calls in their order, neighbours with the same `joint` script as one."""
        joined: list[JoinedCalls] = []
        for joint, neighbours in itertools.groupby(calls, key=lambda call: call.joint):
            rest = list(neighbours)
            while rest:
                size = 1 if joint is None else MAX_JOINED_CALLS
                some, rest = rest[:size], rest[size:]
                joined.append(cls._of_some(some))
        return joined

    @classmethod
    def _of_some(cls, calls: Sequence[ScriptCall]) -> "JoinedCalls":
        first, count = calls[0], len(calls)
        if count == 1 or first.joint is None:
            return cls(first)
        keys = [key for call in calls for key in call.keys]
        args = [arg for call in calls for arg in call.args]
        return cls(ScriptCall(first.joint, keys, args), count)

    def replies(self, reply: Any) -> list[Any]:
        """A reply for each call; an error stands for all of them."""
        if self.count == 1 or isinstance(reply, Exception):
            return [reply] * self.count
        return list(reply)
