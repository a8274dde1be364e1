"""Delegates that are missing, were refused, have hosts, or lead back to where they began.

A refused VirtualService is no document any more; what it delegated to is known from the
error that refused it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from meshlib.control.analysis.world import World, problem
from meshlib.control.istio.document import Document, FieldPath
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.istio.validity.rules import DELEGATES_FURTHER
from meshlib.control.istio.virtualservice import Delegate, VirtualService

_KIND = "VirtualService "


@dataclass(frozen=True, slots=True)
class _Known:
    """VirtualServices by `namespace/name`."""

    held: Mapping[str, Document[VirtualService]]
    refused: Mapping[str, Problem]
    """The first error of each one that has some; it may be held in its last good state."""
    leads: Mapping[str, list[str]]
    """What each delegates to."""


def analyze(world: World, read: Iterable[Problem]) -> Iterator[Problem]:
    """Every delegate; `read` is what was found while the documents were read."""
    known = _known(world, read)
    told: set[frozenset[str]] = set()
    for name, document in known.held.items():
        for index, rule in enumerate(document.spec.http):
            if rule.delegate is None:
                continue
            target = _target(document, rule.delegate)
            circle = _cycle(name, target, known.leads)
            told.add(frozenset(circle))
            code, message, allowed = _verdict(target, circle, known)
            if message:
                path: FieldPath = ("spec", "http", index, "delegate")
                message += "; the rule is left out"
                yield problem(Severity.ERROR, code, document, path, message, repr(target), allowed)
    yield from _refused_cycles(known, told)


def _known(world: World, read: Iterable[Problem]) -> _Known:
    refused: dict[str, Problem] = {}
    leads: dict[str, list[str]] = {}
    for one in read:
        name = one.document.removeprefix(_KIND)
        if one.severity is not Severity.ERROR or name == one.document:
            continue
        refused.setdefault(name, one)
        if one.message == DELEGATES_FURTHER:
            leads.setdefault(name, []).append(_full(one.found.strip("'"), name.partition("/")[0]))
    held = {f"{document.namespace}/{document.name}": document for document in world.virtual_services}
    for name, document in held.items():
        leads[name] = [_target(document, rule.delegate) for rule in document.spec.http if rule.delegate]
    return _Known(held, refused, leads)


def _verdict(target: str, circle: list[str], known: _Known) -> tuple[str, str, str]:
    """(code, message, allowed) of a delegate; no message: it is used."""
    found, why = known.held.get(target), known.refused.get(target)
    because = f"the delegate was refused because of {why.source}: {why.text}" if why and not found else ""
    if circle:
        message = f"a cycle of delegates: {' -> '.join(circle)}"
        return "IST0106", "; ".join(part for part in (message, because) if part), "one level only"
    if found is None:
        return ("IST0106", because, "") if because else ("IST0101", "no such VirtualService", "")
    if found.spec.hosts:
        return "IST0106", "a delegate with hosts of its own", "a VirtualService without hosts"
    return "IST0106", "a delegate that delegates" if known.leads[target] else "", "one level only"


def _refused_cycles(known: _Known, told: set[frozenset[str]]) -> Iterator[Problem]:
    """Cycles of which every member was refused, each at its first member."""
    for name, why in known.refused.items():
        for target in known.leads.get(name, ()) if name not in known.held else ():
            circle = _cycle(name, target, known.leads)
            if circle and frozenset(circle) not in told:
                told.add(frozenset(circle))
                message = f"a cycle of delegates: {' -> '.join(circle)}"
                yield Problem(Severity.ERROR, "IST0106", message, why.document, why.file, why.line, why.field)


def _target(document: Document[VirtualService], delegate: Delegate) -> str:
    return f"{delegate.namespace or document.namespace}/{delegate.name}"


def _full(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def _cycle(start: str, first: str, leads: Mapping[str, list[str]]) -> list[str]:
    """The shortest way that leaves `start` through `first` and comes back; empty: there is none."""
    before: dict[str, str] = {first: start}
    ahead = [first]
    for name in ahead:
        if name == start:
            break
        for target in leads.get(name, ()):
            if target not in before:
                before[target] = name
                ahead.append(target)
    if start not in before:
        return []
    way = [start]
    while len(way) == 1 or way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]
