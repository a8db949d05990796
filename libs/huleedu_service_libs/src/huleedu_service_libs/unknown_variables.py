"""Environment variables that look like settings and are none."""

import difflib
from collections.abc import Collection

__all__ = ["report_unknown"]


def report_unknown(
    given: Collection[str],
    known: Collection[str],
    *,
    prefix: str,
    others: tuple[str, ...] = (),
) -> list[str]:
    """One sentence for each variable of `given` that begins with `prefix` and is not `known`.

    It has the one that was probably meant. All names are in capitals. What begins with one of
    `others` is somebody else's: an orchestrator makes up variables for each service.
    """
    return [
        f"unknown variable {variable}{_meant(variable, known, prefix)}"
        for variable in sorted(set(given) - set(known))
        if variable.startswith(prefix) and not variable.startswith(others)
    ]


def _meant(variable: str, known: Collection[str], prefix: str) -> str:
    rest = variable.removeprefix(prefix)
    if rest in known:
        return f": did you mean {rest}?"
    ours = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    # Without what they all have in common, by which each would be close to some.
    close = difflib.get_close_matches(rest, ours, n=1)
    return f": did you mean {prefix}{close[0]}?" if close else ""
