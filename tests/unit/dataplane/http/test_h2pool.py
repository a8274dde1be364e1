"""What a pool of shared connections decides: who gets which, who waits, who is woken, who fails."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.core.request import Failed, Failure
from meshlib.dataplane.http.h2pool import Found, Overflow, Place, Shared, SharedPool, Terms
from meshlib.dataplane.http.pool import Address

A: Address = (("a", 1), None, "")
B: Address = (("b", 1), None, "")
MANY = 2**31 - 1
FREE = Terms(MANY, MANY, 0, MANY)
LOST = Failed(Failure.CONNECT_FAILED, "refused")


class Wire:
    """A connection."""

    def __init__(self, allowed: int | None = 100) -> None:
        self.alive = True
        self.allowed = allowed

    def usable(self) -> bool:
        return self.alive


Pool = SharedPool[Wire]


def opened(pool: Pool, address: Address = A, terms: Terms = FREE, allowed: int | None = 100) -> Shared[Wire]:
    assert pool.seek(address, terms, 0.0).room
    shared = Shared(Wire(allowed), address)
    pool.made(shared, terms)
    return shared


def test_one_connection_carries_as_many_as_both_sides_allow() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, 3, 0, MANY)
    first = opened(pool, terms=terms)
    assert [pool.seek(A, terms, 0.0).shared for _ in range(2)] == [first, first]
    second = opened(pool, terms=terms)
    assert (first.active, second.active) == (3, 1)
    assert repr(pool) == "<SharedPool: 2 open, 1 requests, 0 waiting>"
    third = opened(SharedPool(), terms=FREE, allowed=1)
    assert third.active == 1


def test_what_was_full_comes_back_and_is_used_first() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, 2, 0, MANY)
    first = opened(pool, terms=terms)
    assert pool.seek(A, terms, 0.0).shared is first
    second = opened(pool, terms=terms)
    assert not pool.release(first, 1.0, 10.0, worn=False)
    assert [pool.seek(A, terms, 1.0).shared for _ in range(2)] == [first, second]
    assert pool.seek(A, terms, 1.0).room


def test_until_a_peer_has_said_its_limit_others_wait() -> None:
    pool: Pool = SharedPool()
    woken: list[int] = []
    shared = opened(pool, allowed=None)
    assert pool.seek(A, FREE, 0.0) == Found()
    places = [pool.join(A, 9, lambda n=n: woken.append(n)) for n in range(3)]  # type: ignore[misc]
    assert pool.seek(A, FREE, 0.0) == Found()
    shared.connection.allowed = 2
    pool.changed(shared, 0.0)
    assert woken == [0]
    assert pool.seek(A, FREE, 0.0, places[0]).shared is shared
    assert woken == [0, 1]
    # It is known now how many such a peer takes, so one more connection is made for the rest.
    assert pool.seek(A, FREE, 0.0, places[1]).room
    assert (pool.opened, pool.waiting) == (2, 1)


def test_who_gives_up_before_a_peer_has_said_its_limit_leaves_the_connection_to_the_next() -> None:
    pool: Pool = SharedPool()
    woken: list[int] = []
    shared = opened(pool, allowed=None)
    places = [pool.join(A, 9, lambda n=n: woken.append(n)) for n in range(2)]  # type: ignore[misc]
    assert not pool.release(shared, 0.0, 10.0, worn=False)
    assert woken == [0]
    assert pool.seek(A, FREE, 0.0, places[0]).shared is shared
    # One at a time: how many it takes is still not known.
    assert pool.seek(A, FREE, 0.0, places[1]) == Found()
    shared.connection.allowed = 2
    pool.changed(shared, 0.0)
    assert pool.seek(A, FREE, 0.0, places[1]).shared is shared
    assert (pool.opened, pool.waiting, shared.active) == (1, 0, 2)


def test_a_connection_whose_peer_never_says_anything_is_closed_as_any_other() -> None:
    pool: Pool = SharedPool()
    shared = opened(pool, allowed=None)
    assert not pool.release(shared, 0.0, 10.0, worn=False)
    assert pool.due() == 10.0
    assert pool.sweep(9.0) == []
    assert pool.sweep(11.0) == [shared.connection]
    assert pool.empty
    late = opened(pool, allowed=None)
    assert not pool.release(late, 20.0, 10.0, worn=False)
    assert pool.clear() == [late.connection]
    assert pool.empty


def test_while_one_is_being_made_others_wait_for_it_as_many_as_it_will_carry() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, 3, 0, MANY)
    assert pool.seek(A, terms, 0.0).room
    for _ in range(2):
        assert pool.seek(A, terms, 0.0) == Found()
        pool.join(A, 9, list)
    assert pool.seek(A, terms, 0.0).room
    assert pool.seek(B, terms, 0.0).room


def test_a_connection_that_fails_fails_all_who_wait_for_that_endpoint() -> None:
    pool: Pool = SharedPool()
    woken: list[str] = []
    for address in (A, B):
        assert pool.seek(address, FREE, 0.0).room
    at_a, at_b = (pool.join(where, 9, lambda: woken.append("x")) for where in (A, B))
    pool.not_made(A, LOST)
    assert (at_a.failed, at_b.failed) == (LOST, None)
    assert (pool.opened, pool.waiting) == (1, 1)
    pool.leave(at_a)
    assert pool.seek(A, FREE, 0.0).room


def test_a_maker_that_gives_up_fails_nobody() -> None:
    pool: Pool = SharedPool()
    woken: list[int] = []
    assert pool.seek(A, FREE, 0.0).room
    places = [pool.join(A, 9, lambda n=n: woken.append(n)) for n in range(2)]  # type: ignore[misc]
    pool.not_made(A, None)
    assert (woken, places[0].failed) == ([0], None)
    assert pool.seek(A, FREE, 0.0, places[0]).room
    pool.not_made(A, None)
    assert woken == [0, 1]


def test_at_the_limit_requests_wait_but_for_an_endpoint_without_any() -> None:
    pool: Pool = SharedPool()
    terms = Terms(1, 1, 0, MANY)
    shared = opened(pool, A, terms)
    assert pool.seek(A, terms, 0.0) == Found()
    other = opened(pool, B, terms)
    pool.release(shared, 0.0, 10.0, worn=False)
    assert pool.seek(B, terms, 0.0).closing == [shared.connection]
    assert (pool.opened, other.active) == (2, 1)


def test_more_than_may_wait_overflow() -> None:
    pool: Pool = SharedPool()
    opened(pool, allowed=None)
    pool.seek(B, FREE, 0.0)
    pool.join(A, 3, list)
    pool.join(B, 3, list)
    with pytest.raises(Overflow):
        pool.join(A, 3, list)


def test_who_makes_a_connection_is_pending() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, 1, 0, 1)
    shared = opened(pool, A, terms)
    assert pool.seek(A, terms, 0.0).room
    assert pool.seek(B, terms, 0.0).overflow
    pool.not_made(A, None)
    assert pool.seek(B, terms, 0.0).room
    pool.made(Shared(Wire(), B), terms)
    assert pool.seek(A, terms, 0.0).room
    assert shared.active == 1


def test_a_connection_takes_nothing_after_its_duration() -> None:
    pool: Pool = SharedPool()
    shared = opened(pool)
    shared.dies = 5.0
    assert pool.seek(A, FREE, 4.9).shared is shared
    assert pool.seek(A, FREE, 5.0).room
    assert not pool.release(shared, 6.0, 10.0, worn=False)
    assert pool.release(shared, 6.0, 10.0, worn=False)
    other: Pool = SharedPool()
    idle = opened(other)
    idle.dies = 3.0
    other.release(idle, 1.0, 10.0, worn=False)
    assert other.sweep(3.0) == [idle.connection]


def test_who_gives_up_passes_its_wake_on() -> None:
    pool: Pool = SharedPool()
    woken: list[int] = []
    shared = opened(pool, terms=Terms(1, 1, 0, MANY))
    places = [pool.join(A, 9, lambda n=n: woken.append(n)) for n in range(3)]  # type: ignore[misc]
    pool.leave(places[1])
    pool.release(shared, 0.0, 10.0, worn=False)
    pool.leave(places[0])
    pool.leave(places[0])
    assert woken == [0, 2]


@pytest.mark.parametrize("why", ["worn", "dead"])
def test_what_takes_no_more_is_closed_with_its_last_request(why: str) -> None:
    pool: Pool = SharedPool()
    shared = opened(pool)
    assert pool.seek(A, FREE, 0.0).shared is shared
    shared.connection.alive = why == "worn"
    assert not pool.release(shared, 0.0, 10.0, worn=why == "worn")
    assert pool.seek(A, FREE, 0.0).room
    assert pool.release(shared, 0.0, 10.0, worn=False)
    assert pool.opened == 1


def test_requests_of_a_connection_are_counted() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, MANY, 2, MANY)
    shared = opened(pool, terms=terms)
    assert pool.seek(A, terms, 0.0).shared is shared
    assert pool.seek(A, terms, 0.0).room
    assert [pool.release(shared, 0.0, 10.0, worn=False) for _ in range(2)] == [False, True]
    once = opened(SharedPool(), terms=Terms(MANY, MANY, 1, MANY))
    assert once.left


def test_what_is_idle_for_too_long_or_dead_is_forgotten() -> None:
    pool: Pool = SharedPool()
    terms = Terms(MANY, 1, 0, MANY)
    old, dead, busy = (opened(pool, terms=terms) for _ in range(3))
    pool.release(old, 0.0, 10.0, worn=False)
    pool.release(dead, 9.0, 10.0, worn=False)
    dead.connection.alive = False
    assert set(pool.sweep(11.0)) == {old.connection, dead.connection}
    assert (pool.opened, busy.active) == (1, 1)
    pool.release(busy, 0.0, 10.0, worn=False)
    found = pool.seek(A, terms, 11.0)
    assert (found.room, found.closing) == (True, [busy.connection])


def test_a_peer_that_takes_none_is_left_when_it_is_idle() -> None:
    pool: Pool = SharedPool()
    shared = opened(pool)
    shared.connection.allowed = 0
    pool.changed(shared, 0.0)
    assert pool.seek(A, FREE, 0.0).room
    pool.release(shared, 0.0, 10.0, worn=False)
    assert pool.seek(A, FREE, 0.0).closing == [shared.connection]


def test_a_peer_that_goes_away_while_idle_is_given_to_be_closed() -> None:
    pool: Pool = SharedPool()
    shared = opened(pool)
    pool.release(shared, 0.0, 10.0, worn=False)
    shared.connection.alive = False
    assert pool.changed(shared, 0.0) == [shared.connection]
    assert pool.changed(shared, 0.0) == []
    assert pool.empty


def test_clearing_gives_the_idle_and_wakes_all() -> None:
    pool: Pool = SharedPool()
    woken: list[int] = []
    busy, idle = opened(pool, A, Terms(MANY, 1, 0, MANY)), opened(pool, B)
    pool.release(idle, 0.0, 10.0, worn=False)
    pool.seek(A, FREE, 0.0)
    for number in range(2):
        pool.join(A, 9, lambda number=number: woken.append(number))  # type: ignore[misc]
    assert pool.clear() == [idle.connection]
    assert woken == [0, 1]
    assert busy.left
    assert pool.release(busy, 0.0, 10.0, worn=False) is False


def test_what_a_peer_does_with_idle_connections_is_learned() -> None:
    pool: Pool = SharedPool()
    lost = opened(pool)
    pool.release(lost, 0.0, 600.0, worn=False)
    assert pool.seek(A, FREE, 40.0).shared is lost
    lost.connection.alive = False
    pool.note_stale(lost, 41.0)
    assert pool.release(lost, 41.0, 600.0, worn=False)
    kept = opened(pool)
    pool.release(kept, 50.0, 600.0, worn=False)
    assert pool.seek(A, FREE, 80.0).shared is kept
    pool.release(kept, 80.0, 600.0, worn=False)
    found = pool.seek(A, FREE, 110.5)
    assert (found.shared, found.room, found.closing) == (None, True, [kept.connection])


def test_who_has_answered_has_not_forgotten_the_connection() -> None:
    pool: Pool = SharedPool()
    busy = opened(pool)
    pool.release(busy, 0.0, 600.0, worn=False)
    assert pool.seek(A, FREE, 40.0).shared is busy
    busy.rested = 0.0
    pool.note_stale(busy, 41.0)
    assert not pool.habits.known


@pytest.mark.parametrize("how", ["seek", "changed", "sweep"])
def test_a_peer_that_closes_an_idle_connection_teaches_too(how: str) -> None:
    pool: Pool = SharedPool()
    left = opened(pool)
    pool.release(left, 10.0, 600.0, worn=False)
    left.connection.alive = False
    if how == "seek":
        assert pool.seek(A, FREE, 18.0).closing == [left.connection]
    else:
        closing = pool.changed(left, 18.0) if how == "changed" else pool.sweep(18.0)
        assert closing == [left.connection]
    assert pool.habits.longest(A, 18.0) == 6.0


class Machine(RuleBasedStateMachine):
    """Requests come, wait, are served, give up and end in any order; connections fail, say limits and die."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: Pool = SharedPool()
        self.terms = Terms(3, 3, 0, 5)
        self.now = 0.0
        self.running: list[Shared[Wire]] = []
        self.making: list[Address] = []
        self.wires: list[Shared[Wire]] = []
        self.places: list[Place] = []

    def take(self, found: Found[Wire], address: Address) -> bool:
        for wire in found.closing:
            assert all(shared.connection is not wire for shared in self.running)
        if found.shared is not None:
            assert found.shared.connection.alive
            assert found.shared.address == address
            self.running.append(found.shared)
        elif found.room:
            self.making.append(address)
        return found.shared is not None or found.room

    @rule(address=st.sampled_from([A, B]))
    def ask(self, address: Address) -> None:
        if not self.take(self.pool.seek(address, self.terms, self.now), address):
            try:
                self.places.append(self.pool.join(address, self.terms.max_pending, lambda: None))
            except Overflow:
                assert len(self.places) + len(self.making) == self.terms.max_pending

    @rule(which=st.integers(0, 9))
    def run_woken(self, which: int) -> None:
        self.places = [place for place in self.places if place.failed is None]
        woken = [place for place in self.places if place.woken]
        if woken:
            place = woken[which % len(woken)]
            if self.take(self.pool.seek(place.address, self.terms, self.now, place), place.address):
                self.places.remove(place)

    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        if self.places:
            self.pool.leave(self.places.pop(which % len(self.places)))

    @rule(which=st.integers(0, 9), allowed=st.sampled_from([None, 1, 2, 100]))
    def made(self, which: int, allowed: int | None) -> None:
        if self.making:
            shared = Shared(Wire(allowed), self.making.pop(which % len(self.making)))
            self.pool.made(shared, self.terms)
            self.running.append(shared)
            self.wires.append(shared)

    @rule(which=st.integers(0, 9), failed=st.sampled_from([None, LOST]))
    def not_made(self, which: int, failed: Failed | None) -> None:
        if self.making:
            self.pool.not_made(self.making.pop(which % len(self.making)), failed)
            self.places = [place for place in self.places if place.failed is None]

    @rule(which=st.integers(0, 9), worn=st.booleans())
    def end(self, which: int, worn: bool) -> None:
        if self.running:
            shared = self.running.pop(which % len(self.running))
            if shared.connection.allowed is None:
                shared.connection.allowed = 100  # what comes before any answer
            self.pool.release(shared, self.now, 5.0, worn=worn)

    @rule(which=st.integers(0, 9), allowed=st.sampled_from([0, 1, 2, 100]))
    def says(self, which: int, allowed: int) -> None:
        if self.wires:
            shared = self.wires[which % len(self.wires)]
            shared.connection.allowed = allowed
            self.pool.changed(shared, self.now)

    @rule(which=st.integers(0, 9))
    def dies(self, which: int) -> None:
        if self.wires:
            shared = self.wires.pop(which % len(self.wires))
            shared.connection.alive = False
            self.pool.changed(shared, self.now)

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.pool.sweep(self.now)

    @invariant()
    def counts_are_true(self) -> None:
        places = [place for place in self.places if place.failed is None]
        assert self.pool.waiting == len(places)
        used = {id(shared): shared for shared in self.running}
        idle = [s for line in self.pool._lines.values() for s in line.offered if not s.active]
        assert self.pool.opened == len(self.making) + len(used) + len(idle)
        assert set(self.pool._idle) == set(idle)
        assert set(self.pool._waited) == {place.address for place in places}
        for shared in used.values():
            assert shared.active == self.running.count(shared) <= 3
        for address, line in self.pool._lines.items():
            unsure = [s for s in self.running if s.address == address and not s.settled]
            assert line.unsettled == self.making.count(address) + len(unsure)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Who waits is woken, or something at its endpoint is under way that will wake it."""
        for address, line in self.pool._lines.items():
            if line.waiting and not next(iter(line.waiting.values())).woken:
                assert line.opened
                assert self.making.count(address) or any(s.address == address for s in self.running)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
