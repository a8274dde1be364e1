"""Ring hash: a key belongs to the first point of a ring that is not before it; endpoints own points.

Rules (Envoy, RingHashLoadBalancer::Ring, which is ketama):
* The lightest endpoint has a whole number of points, at least its share of the smallest ring; the
  others have as many as their weights say, rounded along a running sum. No ring is larger than the
  largest allowed: then the numbers shrink together.
* Point n of an endpoint is the XXH64 of `<key>_<n>`.
* The next try of a retry that must not come back takes the next point.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import ceil

from xxhash import xxh64_intdigest

from meshlib.core.balance.endpoints import Endpoint

Weighted = tuple[bytes, Endpoint, float]
"""What is hashed for an endpoint, the endpoint, its share of all (the shares sum up to at most 1)."""
Find = Callable[[int, int], Endpoint | None]
"""The endpoint of a key (64 bits), at its n-th try (from 0)."""
_SMALL = 20
"""Bits of a number of an endpoint."""


def ring(hosts: Sequence[Weighted], least: int, most: int) -> Find:
    """A ring of `least` to `most` points."""
    if not hosts or not least:
        return lambda key, attempt: None
    lightest = min(weight for _, _, weight in hosts)
    scale = min(ceil(lightest * least) / lightest, float(most))
    points = []
    placed, target = 0, 0.0
    for number, (key, _, weight) in enumerate(hosts):
        target += scale * weight
        count = max(0, ceil(target) - placed)
        placed += count
        prefix = key + b"_%d"
        points += [xxh64_intdigest(prefix % n) << _SMALL | number for n in range(count)]
    points.sort()
    hashes = array("Q", [point >> _SMALL for point in points])
    owners = [hosts[point & (1 << _SMALL) - 1][1] for point in points]
    size = len(owners)

    def find(key: int, attempt: int) -> Endpoint | None:
        return owners[(bisect_left(hashes, key) % size + attempt) % size]

    return find
