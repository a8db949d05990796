"""Many script calls at once, to all nodes of a Redis Cluster that they concern."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from huleedu_service_libs.redis_address import Endpoint
from huleedu_service_libs.redis_cluster_routes import (
    REDIRECTIONS,
    ClusterRoutes,
    Patience,
    Route,
    slot_of,
)
from huleedu_service_libs.redis_deadlines import CallRules
from huleedu_service_libs.redis_script_calls import AS_BYTES, script_command
from huleedu_service_libs.redis_scripts import ScriptCall

# A whole script that was refused is not there for the calls behind it.
_REFUSALS: Final = (*REDIRECTIONS, NoScriptError)


@dataclass(slots=True)
class _RoutedCall:
    call: ScriptCall
    route: Route
    whole: bool = False
    """Whether its script has to be sent with it."""
    reply: Any = None


async def run_scripts(
    routes: ClusterRoutes, calls: Sequence[ScriptCall], rules: CallRules
) -> list[Any]:
    """The replies, errors among them, after a round trip to each node, all at the same time.

    Calls for one slot are carried out in their order, save for those that a node refuses while
    the slot is being moved: they are sent again, behind the others. Raises redis-py's errors only
    where nobody tells who has which slot.
    """
    ends_at = asyncio.get_running_loop().time() + rules.timeout_s
    patience = Patience(rules.timeout_s)
    pending = routed = await rules.run("CLUSTER", _routed(routes, calls))
    while pending:
        by_node = defaultdict[Endpoint, list[_RoutedCall]](list)
        for one in pending:
            by_node[one.route.endpoint].append(one)
        await asyncio.gather(*(_send(some, ends_at) for some in by_node.values()))
        if patience.is_over:
            break
        pending = [one for one in pending if isinstance(one.reply, _REFUSALS)]
        for one in pending:
            if isinstance(one.reply, NoScriptError):
                one.whole = True
            else:
                one.route.redirect(one.reply)
        if pending:
            await patience.pause()
    replies = [one.reply for one in routed]
    rules.judge(replies)
    return replies


async def _routed(routes: ClusterRoutes, calls: Sequence[ScriptCall]) -> list[_RoutedCall]:
    return [
        _RoutedCall(call, await routes.route(slot_of(call.keys[0]) if call.keys else None))
        for call in calls
    ]


async def _send(calls: Sequence[_RoutedCall], ends_at: float) -> None:
    """Make calls that go to one node, and note the replies."""
    pipeline = calls[0].route.server.pipeline(transaction=False)
    sent: set[str] = set()
    for one in calls:
        if one.route.asking:
            pipeline.execute_command("ASKING")
        whole = one.whole or one.call.script.sha not in sent
        sent.add(one.call.script.sha)
        pipeline.execute_command(*script_command(one.call, whole=whole), **AS_BYTES)
    try:
        async with asyncio.timeout_at(ends_at):
            replies = iter(await pipeline.execute(raise_on_error=False))
    except (TimeoutError, RedisError) as error:
        failure = (
            RedisTimeoutError(f"{calls[0].route.endpoint} did not answer in time")
            if isinstance(error, TimeoutError)
            else error
        )
        for one in calls:
            one.reply = failure
        return
    for one in calls:
        if one.route.asking:
            next(replies)
        one.reply = next(replies)
