"""Releases that wait for Redis."""

from huleedu_service_libs.lease_releases import MAX_RELEASES, Release, UnconfirmedReleases

LATE = Release(in_doubt=False, lapses_at=20)
EARLY = Release(in_doubt=True, lapses_at=10)


def test_until_confirmed() -> None:
    """A release is remembered until Redis has confirmed it."""
    releases = UnconfirmedReleases()
    releases.add("t", "a", LATE)
    releases.add("t", "b", EARLY)
    releases.add("u", "a", LATE)
    assert list(releases) == ["t", "u"]
    assert releases.of_user("t") == {"a": LATE, "b": EARLY}
    for _ in range(2):
        releases.confirm("t", "a")
    releases.confirm("nobody", "a")
    assert releases.of_user("t") == {"b": EARLY}
    assert len(releases) == 2
    releases.confirm("u", "a")
    assert list(releases) == ["t"]


def test_until_lapsed() -> None:
    """Nobody has to be told that a lease has ended which has lapsed by itself."""
    releases = UnconfirmedReleases()
    releases.add("t", "a", LATE)
    releases.add("t", "b", EARLY)
    releases.add("u", "b", EARLY)
    releases.forget_lapsed(now=10)
    assert list(releases) == ["t"]
    assert releases.of_user("t") == {"a": LATE}
    assert len(releases) == 1


def test_so_many_and_no_more() -> None:
    """However long Redis is away, no more than so many are remembered."""
    releases = UnconfirmedReleases()
    for number in range(MAX_RELEASES):
        assert releases.add(f"user-{number % 7}", str(number), LATE)
    assert not releases.add("t", "a", LATE)
    assert len(releases) == MAX_RELEASES
    releases.confirm("user-0", "0")
    assert releases.add("t", "a", LATE)
    assert releases.of_user("t") == {"a": LATE}
