"""All analyses in their order, and what an annotation suppresses."""

from collections.abc import Iterable

from meshlib.control.analysis import (
    conflicts,
    delegation,
    gateways,
    mtls,
    notapplied,
    references,
    telemetry,
    unreachable,
)
from meshlib.control.analysis.world import SUPPRESS, World
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import Problem

_ANALYSES = (
    references.analyze,
    conflicts.analyze,
    gateways.analyze,
    mtls.analyze,
    unreachable.analyze,
    telemetry.analyze,
    notapplied.analyze,
)


def analyze(documents: Iterable[AnyDocument], read: Iterable[Problem] = ()) -> tuple[Problem, ...]:
    """What is wrong between the documents, by file and line. Pure.

    `read` is what was found while they were read: a delegate may have been refused.
    """
    world = World.of(documents)
    quiet = {document.title: _suppressed(document) for document in world.documents}
    found = (problem for analysis in _ANALYSES for problem in analysis(world))
    delegated = delegation.analyze(world, read)
    kept = (
        problem
        for problem in (*found, *delegated)
        if not {problem.code, "*"} & quiet.get(problem.document, frozenset())
    )
    return tuple(sorted(kept, key=lambda problem: (problem.file, problem.line, problem.code, problem.field)))


def _suppressed(document: AnyDocument) -> frozenset[str]:
    return frozenset(code.strip() for code in document.annotations.get(SUPPRESS, "").split(","))
