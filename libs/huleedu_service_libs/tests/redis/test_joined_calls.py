"""Many script calls as few."""

from huleedu_service_libs.redis_scripts import MAX_JOINED_CALLS, JoinedCalls, Script, ScriptCall

ONE = Script("return ARGV[1]")
JOINT = Script("return ARGV")
OTHER = Script("return 1")


def call(number: int, joint: Script | None = JOINT) -> ScriptCall:
    return ScriptCall(ONE, [f"k{number}"], [number, "x"], joint)


def test_neighbours_become_one() -> None:
    """Calls that can be joined are, with all their keys and arguments in order."""
    (joined,) = JoinedCalls.of([call(n) for n in range(3)])
    assert joined == JoinedCalls(
        ScriptCall(JOINT, ["k0", "k1", "k2"], [0, "x", 1, "x", 2, "x"]), count=3
    )
    assert joined.replies(["a", "b", "c"]) == ["a", "b", "c"]


def test_what_stays_alone() -> None:
    """A call without a joint script, or without a neighbour of its kind, is made as it is."""
    calls = [call(0), call(1, None), call(2, None), call(3), call(4, OTHER)]
    joined = JoinedCalls.of(calls)
    assert [some.call for some in joined] == calls
    assert [some.replies(["a", "list"]) for some in joined] == [[["a", "list"]]] * 5


def test_no_call_takes_redis_long() -> None:
    """However many there are, only so many are joined."""
    joined = JoinedCalls.of([call(n) for n in range(2 * MAX_JOINED_CALLS + 1)])
    assert [some.count for some in joined] == [MAX_JOINED_CALLS, MAX_JOINED_CALLS, 1]
    assert joined[-1].call == call(2 * MAX_JOINED_CALLS)


def test_error_of_a_joined_call() -> None:
    """If a joined call fails, each of its calls has."""
    (joined,) = JoinedCalls.of([call(n) for n in range(3)])
    error = RuntimeError("no")
    assert joined.replies(error) == [error] * 3


def test_nothing() -> None:
    """No calls are no calls."""
    assert JoinedCalls.of([]) == []
