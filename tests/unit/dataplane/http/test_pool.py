"""What a pool decides: who gets which connection, who waits, who is woken."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.dataplane.http.pool import Found, Kept, Place, Pool

A, B = ("a", 1), ("b", 1)
MANY = 2**32 - 1


class Wire:
    """A connection."""

    keeps = math.inf

    def __init__(self) -> None:
        self.alive = True

    def usable(self) -> bool:
        return self.alive


def opened(pool: Pool[Wire], address: tuple[str, int] = A, most: int = MANY) -> Kept[Wire]:
    assert pool.seek(address, most, 0.0).room
    return Kept(Wire(), address)


def test_the_one_used_last_is_used_first() -> None:
    pool: Pool[Wire] = Pool()
    first, second = opened(pool), opened(pool)
    pool.give_back(first, 1.0, 10.0)
    pool.give_back(second, 2.0, 10.0)
    assert pool.seek(A, MANY, 3.0).kept is second
    assert pool.seek(A, MANY, 3.0).kept is first
    assert pool.seek(A, MANY, 3.0).room
    assert repr(pool) == "<Pool: 3 open, 0 idle, 0 waiting>"


def test_what_is_too_old_or_dead_is_closed_instead_of_used() -> None:
    pool: Pool[Wire] = Pool()
    old, dead, good = (opened(pool) for _ in range(3))
    for kept, now in ((old, 0.0), (good, 8.0), (dead, 9.0)):
        pool.give_back(kept, now, 10.0)
    dead.connection.alive = False
    found = pool.seek(A, MANY, 18.0)
    assert (found.kept, found.closing) == (good, [dead.connection])
    found = pool.seek(A, MANY, 18.0)
    assert (found.room, found.closing) == (True, [old.connection])
    assert (pool.opened, pool.idle) == (2, 0)


def test_a_sweep_forgets_what_is_of_no_use() -> None:
    pool: Pool[Wire] = Pool()
    old, dead, good, other = opened(pool), opened(pool), opened(pool), opened(pool, B)
    for kept, now in ((old, 0.0), (dead, 5.0), (good, 5.0), (other, 0.0)):
        pool.give_back(kept, now, 10.0)
    dead.connection.alive = False
    assert set(pool.sweep(11.0)) == {old.connection, dead.connection, other.connection}
    assert (pool.opened, pool.idle) == (1, 1)


def test_at_the_limit_an_idle_connection_to_another_endpoint_makes_room() -> None:
    pool: Pool[Wire] = Pool()
    other = opened(pool, B, 2)
    opened(pool, A, 2)
    assert pool.seek(A, 2, 0.0) == Found()
    pool.give_back(other, 0.0, 10.0)
    found = pool.seek(A, 2, 0.0)
    assert (found.room, found.closing, pool.opened) == (True, [other.connection], 2)


def test_more_than_may_wait_overflow() -> None:
    pool: Pool[Wire] = Pool()
    kept = opened(pool, A, 1)
    pool.made()
    assert not pool.seek(A, 1, 0.0, None, 1).overflow
    pool.join(list)
    assert pool.seek(A, 1, 0.0, None, 1).overflow
    assert not pool.seek(A, 1, 0.0, None, 2).overflow
    pool.give_back(kept, 0.0, 10.0)
    assert pool.seek(A, 9, 0.0, None, 1).overflow


def test_who_makes_a_connection_is_pending_until_it_is_made() -> None:
    pool: Pool[Wire] = Pool()
    kept = opened(pool)
    assert pool.seek(A, MANY, 0.0, None, 1) == Found(overflow=True)
    pool.made()
    assert pool.seek(A, MANY, 0.0, None, 1).room
    pool.made()
    pool.gone()
    pool.give_back(kept, 0.0, 10.0)
    # An idle connection needs nothing to be pending.
    assert pool.seek(A, MANY, 0.0, None, 0).kept is kept
    assert pool.seek(A, MANY, 0.0, None, 0).overflow
    assert (pool.opened, pool.opening) == (1, 0)


def test_a_connection_does_not_outlive_its_duration() -> None:
    pool: Pool[Wire] = Pool()
    kept = opened(pool)
    kept.dies = 5.0
    pool.give_back(kept, 4.0, 10.0)
    assert pool.seek(A, MANY, 5.0).kept is kept
    pool.give_back(kept, 5.0, 10.0)
    found = pool.seek(A, MANY, 5.1)
    assert (found.room, found.closing) == (True, [kept.connection])


def test_nobody_overtakes_and_each_is_woken_once() -> None:
    pool: Pool[Wire] = Pool()
    kept, woken = opened(pool, A, 1), []
    first = pool.join(lambda: woken.append(1))
    second = pool.join(lambda: woken.append(2))
    pool.give_back(kept, 0.0, 10.0)
    assert woken == [1]
    assert pool.seek(A, 1, 0.0) == Found()
    assert pool.seek(A, 1, 0.0, first).kept is kept
    pool.leave(first)
    assert woken == [1]
    pool.gone()
    assert woken == [1, 2]
    assert pool.seek(A, 1, 0.0, second).room
    assert (pool.waiting, pool.opened) == ({}, 1)


def test_an_idle_connection_is_told_to_the_next_who_waits() -> None:
    pool: Pool[Wire] = Pool()
    kept = [opened(pool, A, 3) for _ in range(3)]
    woken: list[str] = []
    for_b = pool.join(lambda: woken.append("b"))
    pool.gone()
    pool.give_back(kept[0], 1.0, 10.0)
    pool.join(lambda: woken.append("a"))
    assert pool.seek(B, 3, 1.0, for_b).room
    assert woken == ["b", "a"]


def test_who_gives_up_passes_its_wake_on() -> None:
    pool: Pool[Wire] = Pool()
    kept, woken = opened(pool, A, 1), []
    places = [pool.join(lambda n=n: woken.append(n)) for n in range(3)]  # type: ignore[misc]
    pool.leave(places[1])
    pool.give_back(kept, 0.0, 10.0)
    pool.leave(places[0])
    assert woken == [0, 2]
    pool.leave(places[0])
    assert woken == [0, 2]


def test_clearing_gives_the_idle_and_wakes_all() -> None:
    pool: Pool[Wire] = Pool()
    kept, woken = opened(pool), []
    opened(pool)
    pool.give_back(kept, 0.0, 10.0)
    for number in range(2):
        pool.join(lambda number=number: woken.append(number))  # type: ignore[misc]
    assert pool.clear() == [kept.connection]
    assert (woken, pool.opened, pool.idle) == ([0, 1], 1, 0)


class Machine(RuleBasedStateMachine):
    """Requests come, wait, are served, give up and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: Pool[Wire] = Pool()
        self.most = 3
        self.now = 0.0
        self.busy: list[Kept[Wire]] = []
        self.places: list[tuple[Place, tuple[str, int]]] = []

    def take(self, found: Found[Wire], address: tuple[str, int]) -> bool:
        for wire in found.closing:
            assert all(kept.connection is not wire for kept in self.busy)
        if found.kept is not None:
            assert found.kept.connection.alive
            assert found.kept.address == address
            self.busy.append(found.kept)
        elif found.room:
            self.pool.made()
            self.busy.append(Kept(Wire(), address))
        return found.kept is not None or found.room

    @rule(address=st.sampled_from([A, B]))
    def ask(self, address: tuple[str, int]) -> None:
        if not self.take(self.pool.seek(address, self.most, self.now), address) and len(self.places) < 4:
            self.places.append((self.pool.join(lambda: None), address))

    @rule(which=st.integers(0, 9))
    def run_woken(self, which: int) -> None:
        woken = [entry for entry in self.places if entry[0].woken]
        if woken:
            entry = woken[which % len(woken)]
            if self.take(self.pool.seek(entry[1], self.most, self.now, entry[0]), entry[1]):
                self.places.remove(entry)

    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        if self.places:
            self.pool.leave(self.places.pop(which % len(self.places))[0])

    @rule(which=st.integers(0, 9), again=st.booleans())
    def end(self, which: int, again: bool) -> None:
        if self.busy:
            kept = self.busy.pop(which % len(self.busy))
            self.pool.give_back(kept, self.now, 5.0) if again else self.pool.gone()

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.pool.sweep(self.now)

    @rule()
    def die(self) -> None:
        for idle in self.pool._idle.values():
            idle[0].connection.alive = False

    @invariant()
    def counts_are_true(self) -> None:
        assert self.pool.opened == len(self.busy) + self.pool.idle <= self.most
        assert [place for place, _ in self.places] == list(self.pool.waiting.values())
        assert list(self.pool._asleep.values()) == [place for place, _ in self.places if not place.woken]

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """If something is free, one of those who wait has been woken."""
        if self.places and len(self.busy) < self.most:
            assert any(place.woken for place, _ in self.places)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# What is learned of peers


def test_a_connection_is_kept_for_as_long_as_its_peer_is_known_to_keep_it() -> None:
    pool: Pool[Wire] = Pool()
    first = opened(pool)
    first.uses = 1
    pool.give_back(first, 0.0, 100.0)
    first.connection.alive = False
    assert pool.seek(A, MANY, 4.0).closing == [first.connection]
    second = Kept(Wire(), A, 1)
    pool.give_back(second, 10.0, 100.0)
    assert second.until == 13.0
    other = opened(pool, B)
    pool.give_back(other, 10.0, 100.0)
    assert other.until == 110.0


def test_a_new_one_can_be_asked_for() -> None:
    pool: Pool[Wire] = Pool()
    stale, idle, other = opened(pool), opened(pool), opened(pool, B)
    pool.give_back(stale, 0.0, 100.0)
    pool.give_back(idle, 0.0, 100.0)
    pool.give_back(other, 0.0, 100.0)
    taken = pool.seek(A, 3, 5.0).kept
    assert taken is idle
    pool.note_stale(taken, 5.0)
    pool.gone()
    found = pool.seek(A, 3, 5.0, anew=True)
    assert (found.kept, found.room, found.closing) == (None, True, [stale.connection])
    assert (pool.opened, pool.idle) == (2, 1)
    assert pool.habits.longest(A, 5.0) == 3.75
