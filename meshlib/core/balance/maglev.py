"""Maglev: a key belongs to the owner of the table's entry at the key modulo the table's size.

Rules (Envoy, MaglevTable):
* Endpoints, in the order of their keys, take turns; each takes the first free entry of its own
  permutation of the table, which two hashes of its key define: start and step.
* The heaviest endpoint has a turn in each round, the others as often as their weights say.
* The next try of a retry that must not come back is a far away key.
"""

from collections.abc import Sequence
from typing import Any

from xxhash import xxh64_intdigest

from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.balance.ring import Find, Weighted

_WORD = 1 << 64


def maglev(hosts: Sequence[Weighted], size: int) -> Find:
    """A table of `size` entries, a prime number."""
    if not hosts:
        return lambda key, attempt: None
    table = _fill(sorted(hosts, key=lambda host: host[0]), size)

    def find(key: int, attempt: int) -> Endpoint | None:
        return table[(key ^ _WORD - attempt if attempt else key) % size]

    return find


def _fill(hosts: Sequence[Weighted], size: int) -> list[Endpoint]:
    # Envoy's arithmetic in its order: what is rounded there must be rounded alike.
    table: list[Any] = [None] * size
    places = [xxh64_intdigest(key) % size for key, _, _ in hosts]
    steps = [xxh64_intdigest(key, 1) % (size - 1) + 1 for key, _, _ in hosts]
    targets = [0.0] * len(hosts)
    heaviest = max(weight for _, _, weight in hosts)
    left, turn = size, 0
    while True:
        turn += 1
        for number, (_, endpoint, weight) in enumerate(hosts):
            if turn * weight < targets[number]:
                continue
            targets[number] += heaviest
            place, step = places[number], steps[number]
            while table[place] is not None:
                place += step
                if place >= size:
                    place -= size
            table[place] = endpoint
            places[number] = place
            left -= 1
            if not left:
                return table
