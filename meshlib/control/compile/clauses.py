"""Clauses of authorization: one field of a rule, who can apply it, and how clauses are joined.

Permissions (what is asked for) and principals (who asks) are joined alike; a Grammar has their words.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from meshlib.xds import pb


class Filterer(Enum):
    """Who applies a policy."""

    HTTP = "Envoy's HTTP filter"
    TCP = "Envoy's TCP filter"
    GRPC = "gRPC's servers"


class Needs(Enum):
    """What a field is about."""

    CONNECTION = "a connection"
    REQUEST = "an HTTP request"
    TOKEN = "a token"  # noqa: S105 - a word
    ENVOY = "a connection, known to Envoy alone"
    ENVOY_REQUEST = "an HTTP request, known to Envoy alone"


_KNOWN = {
    Filterer.HTTP: frozenset(Needs),
    Filterer.TCP: frozenset((Needs.CONNECTION, Needs.ENVOY)),
    Filterer.GRPC: frozenset((Needs.CONNECTION, Needs.REQUEST, Needs.TOKEN)),
}


@dataclass(frozen=True, slots=True)
class Clause:
    """One field of a rule: matches if any of `values` does and none of `but` does."""

    field: str
    values: tuple[str, ...]
    but: tuple[str, ...]
    match: Callable[[tuple[str, ...]], Any]
    """A Permission or Principal that matches any of the values."""
    needs: Needs = Needs.CONNECTION

    def known_to(self, who: Filterer) -> bool:
        """Whether the field means something to who filters."""
        return self.needs in _KNOWN[who] or not (self.values or self.but)


@dataclass(frozen=True, slots=True)
class Grammar:
    """How permissions and principals say and, or, not."""

    name: str
    every: str
    some: str
    items: str
    negated: str

    def all(self, parts: Iterable[Any]) -> Any:
        """All of the parts match."""
        made = pb.message(self.name)()
        getattr(getattr(made, self.every), self.items).extend(parts)
        return made

    def any(self, parts: Iterable[Any]) -> Any:
        """One of the parts matches."""
        made = pb.message(self.name)()
        getattr(getattr(made, self.some), self.items).extend(parts)
        return made

    def no(self, part: Any) -> Any:
        """The part does not match."""
        return pb.message(self.name)(**{self.negated: part})

    def always(self) -> Any:
        """Always matches."""
        return pb.message(self.name)(any=True)

    def each(self, make: Callable[[str], Any]) -> Callable[[tuple[str, ...]], Any]:
        """Any of the values, of which `make` says what matches one."""
        return lambda values: self.any(pb.message(self.name)(**make(value)) for value in values)


PERMISSION = Grammar("envoy.config.rbac.v3.Permission", "and_rules", "or_rules", "rules", "not_rule")
PRINCIPAL = Grammar("envoy.config.rbac.v3.Principal", "and_ids", "or_ids", "ids", "not_id")


def joined(clauses: Iterable[Clause], grammar: Grammar, who: Filterer) -> Any:
    """What matches if all the clauses do that mean something to who filters."""
    parts = []
    for clause in clauses:
        if not clause.known_to(who):
            continue
        if clause.needs is Needs.TOKEN and who is Filterer.GRPC:
            if clause.values:
                parts.append(grammar.no(grammar.always()))
            continue
        if clause.values:
            parts.append(clause.match(clause.values))
        if clause.but:
            parts.append(grammar.no(clause.match(clause.but)))
    return grammar.all(parts or [grammar.always()])
