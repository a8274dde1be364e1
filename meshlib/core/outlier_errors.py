"""Which responses are failures for outlier detection, where the configuration says so (MatchPredicate).

Rules (Envoy): only the head of a response is looked at; all of a rule's header conditions must hold.
"""

from meshlib.core.request import RequestHead, ResponseHead
from meshlib.core.route.match import HeaderMatch
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Statuses:
    """Those statuses."""

    statuses: frozenset[int]

    def __call__(self, response: ResponseHead) -> bool:
        """Whether it is a failure."""
        return response.status in self.statuses


@dataclass(frozen=True, slots=True)
class Headers:
    """All these conditions on headers, or on `:status`."""

    conditions: tuple[HeaderMatch, ...]

    def __call__(self, response: ResponseHead) -> bool:
        """Whether it is a failure."""
        headers = [(b":status", b"%d" % response.status), *response.headers]
        head = RequestHead("", "", "", "", headers)
        return all(condition.holds(head) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of these."""

    rules: "tuple[Errors, ...]"

    def __call__(self, response: ResponseHead) -> bool:
        """Whether it is a failure."""
        return any(rule(response) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of these; without any, every response."""

    rules: "tuple[Errors, ...]"

    def __call__(self, response: ResponseHead) -> bool:
        """Whether it is a failure."""
        return all(rule(response) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Not:
    """Not this one."""

    rule: "Errors"

    def __call__(self, response: ResponseHead) -> bool:
        """Whether it is a failure."""
        return not self.rule(response)


Errors = Statuses | Headers | AnyOf | AllOf | Not
