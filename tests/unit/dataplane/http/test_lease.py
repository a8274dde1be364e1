"""A connection is given back or closed exactly once, even if nobody says so."""

import math

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import RequestHead
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.pool import Kept, Pool

HEAD = RequestHead("GET", "http", "a", "/")


class Wire:
    """A connection."""

    keeps = math.inf

    def usable(self) -> bool:
        return True


class Holder:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[bool | None] = []

    def take_back(self, lease: Lease[Wire], reusable: bool) -> None:
        self.told.append(reusable)

    def note_lost(self, pool: Pool[Wire], connection: Wire) -> None:
        self.told.append(None)


def lease(holder: Holder, kept: Kept[Wire], most: int = 0) -> Lease[Wire]:
    attempt = Attempt("c", ("a", 1), HEAD, Upstream(max_requests_per_connection=most), None, None)
    return Lease(holder, Pool(), kept, attempt, fresh=False)


def test_only_the_first_end_counts() -> None:
    holder = Holder()
    made = lease(holder, Kept(Wire(), ("a", 1)))
    assert made.open
    made.end(True)
    made.end(False)
    assert not made.open
    del made
    assert holder.told == [True]


def test_one_that_nobody_ends_is_noted() -> None:
    holder = Holder()
    made = lease(holder, Kept(Wire(), ("a", 1)))
    del made
    assert holder.told == [None]


def test_a_connection_wears_out() -> None:
    holder, kept = Holder(), Kept(Wire(), ("a", 1))
    for _ in range(3):
        lease(holder, kept, most=3).end(True)
    assert holder.told == [True, True, False]
