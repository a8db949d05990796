"""Leases against a model: the scripts alone, a real Redis, and calls that come late.

Hypothesis has processes acquire, renew and release, repeats calls that were made before, as a
network may that was thought to have lost them, and lets time pass. What has to hold: nobody gets in
over the limit, who is released does not come back, and those count whose leases have not lapsed.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.lease_scripts import LeaseScripts
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_scripts import Script, ScriptCall
from huleedu_service_libs.redis_server import RedisServer

# Only a failure takes so long: Hypothesis looks for the shortest way to it.
pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")

USER = "teacher-{1}"
KEY = UserKeys.of(user_channel(USER)).connections
# Far more than an example takes, so that no time passes but what the model lets pass.
DURATION_S = 100_000
SCRIPTS = LeaseScripts.of(DURATION_S)
LIMIT = 3
# Every end comes nearer by so many seconds; what a lease or a mark has left decides its sign.
PASS_TIME = Script(
    """
local kept = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #kept, 2 do
  local score, sign = tonumber(kept[i + 1]), 1
  if score < 0 then sign = -1 end
  redis.call('ZADD', KEYS[1], score - sign * tonumber(ARGV[1]), kept[i])
end
"""
)


@dataclass
class Place:
    """What the model knows of a connection."""

    left_s: float
    is_released: bool = False


class LeaseModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = RedisServer()
        self.run(self.server.__aenter__())
        self.client = RedisClient(client_id="model", redis_url=self.server.url)
        self.run(self.client.start())
        self.leases = ConnectionLeases(self.client)
        self.places: dict[str, Place] = {}
        self.acquired: list[ScriptCall] = []
        self.renewed: list[tuple[ScriptCall, list[str]]] = []
        self.number = 0

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    def teardown(self) -> None:
        self.run(self.client.stop())
        self.run(self.server.__aexit__(None, None, None))
        self.runner.close()

    def call(self, call: ScriptCall) -> object:
        return self.run(self.client.run_script(call.script, call.keys, call.args))

    def counting(self) -> dict[str, Place]:
        return {
            id_: place
            for id_, place in self.places.items()
            if place.left_s > 0 and not place.is_released
        }

    def forgotten(self) -> None:
        for id_, place in list(self.places.items()):
            if place.left_s <= 0:
                del self.places[id_]

    @rule(limit=st.integers(1, LIMIT))
    def acquire(self, limit: int) -> None:
        self.number += 1
        self._acquire(SCRIPTS.acquire.call(KEY, [f"c{self.number}", limit, 0]))

    @precondition(lambda self: self.acquired)
    @rule(data=st.data())
    def acquire_comes_late(self, data: st.DataObject) -> None:
        self._acquire(data.draw(st.sampled_from(self.acquired)), again=True)

    def _acquire(self, call: ScriptCall, *, again: bool = False) -> None:
        _, connection_id, limit, _, *released = call.args
        assert isinstance(connection_id, str)
        assert isinstance(limit, int)
        self.forgotten()
        for id_ in released[::2]:
            self.places[str(id_)] = Place(DURATION_S, is_released=True)
        place = self.places.get(connection_id)
        fresh = [one for one in self.counting().values() if one.left_s > DURATION_S / 2]
        if place is not None and place.is_released:
            expected = "released"
        elif place is not None or len(self.counting()) < limit:
            expected = Admission.GRANTED
            self.places[connection_id] = Place(DURATION_S)
        else:
            expected = Admission.FULL_FOR_NOW if len(fresh) < limit else Admission.FULL
        assert self.call(call) == expected.encode()
        if not again:
            self.acquired.append(call)

    @precondition(lambda self: self.counting())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.counting())), min_size=1, unique=True))
        self.renewed.append((SCRIPTS.renew.call(KEY, ids), ids))
        self._renew(*self.renewed[-1])

    @precondition(lambda self: self.renewed)
    @rule(data=st.data())
    def renewal_comes_late(self, data: st.DataObject) -> None:
        self._renew(*data.draw(st.sampled_from(self.renewed)))

    def _renew(self, call: ScriptCall, ids: list[str]) -> None:
        self.call(call)
        self.forgotten()
        for id_ in ids:
            if id_ not in self.places or not self.places[id_].is_released:
                self.places[id_] = Place(DURATION_S)

    @precondition(lambda self: self.counting())
    @rule(data=st.data(), with_next=st.booleans())
    def release_in_doubt(self, data: st.DataObject, with_next: bool) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.counting())))
        if with_next:
            self.number += 1
            self._acquire(SCRIPTS.acquire.call(KEY, [f"c{self.number}", LIMIT, 0, id_, 1]))
        else:
            self.places[id_] = Place(DURATION_S, is_released=True)
            self.call(SCRIPTS.release.call(KEY, [id_, 1]))

    @precondition(lambda self: self.counting())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.counting())))
        del self.places[id_]
        self.call(SCRIPTS.release.call(KEY, [id_, 0]))

    @rule(part=st.sampled_from([0.1, 0.4, 0.7]))
    def time_passes(self, part: float) -> None:
        self.run(self.client.run_script(PASS_TIME, [KEY], [part * DURATION_S]))
        for place in self.places.values():
            place.left_s -= part * DURATION_S

    @rule()
    def redis_loses_everything(self) -> None:
        self.run(self.client.delete(KEY))
        self.places.clear()

    @invariant()
    def those_count_who_should(self) -> None:
        found = self.run(self.leases.of_user(USER))
        assert {lease.connection_id for lease in found} == set(self.counting())
        assert self.run(self.leases.users()) == ([USER] if found else [])
        assert self.run(self.client.ttl(KEY)) != -1, "the key lives for ever"


LeaseModel.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLeaseModel = LeaseModel.TestCase
