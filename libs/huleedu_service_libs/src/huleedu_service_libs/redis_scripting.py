"""Commands that others are made of: publishing, transactions and scripts."""

from collections.abc import Hashable, Sequence
from typing import Any

from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

from huleedu_service_libs.redis_commands import RedisCommands
from huleedu_service_libs.redis_script_calls import AS_BYTES, script_command
from huleedu_service_libs.redis_scripts import Script, ScriptCall


class RedisScripting(RedisCommands):
    """The publishing, transactions and scripts of `AtomicRedisClientProtocol`."""

    def __init__(self) -> None:
        self._scripts: dict[str, str] = {}

    async def publish(self, channel: str, message: str | bytes) -> int:
        command = await self._commands.publish_command()
        return int(await self._commands.execute_command(command, channel, message))

    async def publish_command(self) -> str:
        return await self._commands.publish_command()

    async def create_transaction_pipeline(self, *watch_keys: str) -> Pipeline:
        return await self._commands.begin_transaction(watch_keys)

    async def register_script(self, body: str) -> str:
        sha = str(await self._commands.script_load(body))
        self._scripts[sha] = body
        return sha

    async def execute_script(
        self, sha: str, keys: Sequence[str], args: Sequence[str | bytes | float]
    ) -> Any:
        """Run a registered script in one round trip, or in two after Redis has restarted."""
        try:
            return await self._commands.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            if sha not in self._scripts:
                raise
            return await self._commands.eval(self._scripts[sha], len(keys), *keys, *args)

    async def run_script(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | float]
    ) -> Any:
        call = ScriptCall(script, keys, args)
        try:
            return await self._run(call, whole=False)
        except NoScriptError:
            return await self._run(call, whole=True)

    async def _run(self, call: ScriptCall, *, whole: bool) -> Any:
        command = script_command(call, whole=whole)
        return await self._commands.execute_command(*command, **AS_BYTES)

    async def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        return await self._commands.run_scripts(calls)

    def node_of(self, key: str) -> Hashable:
        return self._commands.node_of(key)
