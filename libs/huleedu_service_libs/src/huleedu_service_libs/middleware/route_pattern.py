"""The route of a request under a name that no client has chosen, as labels of metrics need it."""

from collections.abc import Sequence
from typing import Final

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

__all__ = ["UNMATCHED", "route_pattern"]

UNMATCHED: Final = "unmatched"
# What compiling a mount's path adds to it.
_BELOW_MOUNT: Final = "/{path}"


def route_pattern(scope: Scope) -> str:
    """`/v1/batches/{batch_id}/status` or `UNMATCHED`, for a scope as an app's middleware gets it.

    Prefixes of included routers and of mounts are part of it. A path that is another route's but
    for its method or its last slash: the first has that route's pattern, the second has none.

    The routes are asked because the scope does not say it afterwards: a mount leaves there the path
    as it was sent.
    """
    return _pattern(scope["app"].routes, scope) or UNMATCHED


def _pattern(routes: Sequence[BaseRoute], scope: Scope) -> str | None:
    partial: str | None = None
    # Routers that are included come with the paths that their routes have there.
    for context in iter_route_contexts(routes):
        try:
            match, child_scope = context.matches(scope)
        except ValueError:
            # A path that a convertor refuses (an int of 5,000 digits) fails in the router, too.
            return None
        if match is Match.NONE:
            continue
        pattern = context.path_format
        if isinstance(context.original_route, Mount) and context.original_route.routes:
            below = _pattern(context.original_route.routes, {**scope, **child_scope})
            pattern = below and f"{(pattern or '').removesuffix(_BELOW_MOUNT)}{below}"
        if match is Match.FULL:
            return pattern
        partial = partial or pattern
    return partial
