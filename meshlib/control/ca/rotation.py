"""How one root takes the place of another while nobody notices. Pure: generations and a time in, answers out.

A generation is a root and the issuer below it. The newest takes over by the clock alone:

    announced   both are trusted, the old one issues     for the overlap: everybody learns the new root
    issuing     both are trusted, the new one issues     until the last certificate of the old one has ended
    settled     the new root alone

So nothing has to be done at the moment of a change, and no process that was down misses one.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from meshlib.control.ca.issuer import Issuer
from meshlib.identity.keys import SigningKey

FORGET_AFTER_S = 7 * 86400
"""How long a root that is trusted no more is kept: a clock that was wrong for a while costs nothing."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A root and what issues below it. Times in Unix seconds."""

    label: str
    made: float
    issues_from: float
    trusted_until: float | None
    """None: nothing has taken its place."""
    root_key: SigningKey = field(repr=False)
    issuer: Issuer


class Phase(Enum):
    """How far the newest root is."""

    ANNOUNCED = "announced"
    ISSUING = "issuing"
    SETTLED = "settled"


def trusted(generations: Sequence[Generation], now: float) -> tuple[Generation, ...]:
    """Those whose root is trusted, the oldest first."""
    return tuple(one for one in generations if one.trusted_until is None or now < one.trusted_until)


def issuing(generations: Sequence[Generation], now: float) -> Generation:
    """The one that signs: the newest whose time has come. A clock before all of them gets the oldest."""
    return next((one for one in reversed(generations) if one.issues_from <= now), generations[0])


def phase(generations: Sequence[Generation], now: float) -> tuple[Phase, float | None]:
    """Which phase it is and when it ends."""
    newest = generations[-1]
    if issuing(generations, now) is not newest:
        return Phase.ANNOUNCED, newest.issues_from
    ends = [one.trusted_until for one in trusted(generations, now) if one.trusted_until is not None]
    return (Phase.ISSUING, max(ends)) if ends else (Phase.SETTLED, None)


def succeed(
    generations: Sequence[Generation], new: Generation, now: float, overlap_s: float, keep_s: float
) -> tuple[Generation, ...]:
    """With a new one, which issues after the overlap; the others are trusted `keep_s` seconds longer."""
    begin = now + overlap_s
    older = (
        dataclasses.replace(one, trusted_until=min(begin + keep_s, one.trusted_until or float("inf")))
        for one in generations
    )
    return (*older, dataclasses.replace(new, issues_from=begin))


def remembered(generations: Sequence[Generation], now: float) -> tuple[Generation, ...]:
    """Those that are worth keeping."""
    return tuple(
        one for one in generations if one.trusted_until is None or now < one.trusted_until + FORGET_AFTER_S
    )
