"""What is validated and kept, but not acted on by in-process clients of this version. One table.

A law test compares it with docs/reference/istio-support.md.
"""

from collections.abc import Iterator

from pydantic import BaseModel

from meshlib.control.analysis.world import World, problem
from meshlib.control.istio.document import FieldPath
from meshlib.control.istio.problem import NOT_APPLIED, Problem, Severity

LATER = "in-process clients do not apply it yet; an Envoy that this control service configures may"

NOT_YET: dict[str, tuple[tuple[str, ...], ...]] = {
    "Telemetry": (("metrics",),),
    "VirtualService": (("http", "match", "stat_prefix"),),
    "DestinationRule": tuple(
        (*where, name, *rest)
        for where in (
            ("traffic_policy",),
            ("subsets", "traffic_policy"),
            ("traffic_policy", "port_level_settings"),
            ("subsets", "traffic_policy", "port_level_settings"),
        )
        for name, *rest in (("tls", "credential_name"),)
    ),
}
"""Fields, as attributes below `spec`; lists on the way are gone through item by item."""

WHOLE_KINDS = ("ProxyConfig", "WorkloadGroup")


def analyze(world: World) -> Iterator[Problem]:
    """An Info for everything that would otherwise mislead in silence."""
    for document in world.documents:
        if document.kind in WHOLE_KINDS:
            yield problem(
                Severity.INFO, NOT_APPLIED, document, ("kind",), f"{document.kind} is validated; {LATER}"
            )
        for field in NOT_YET.get(document.kind, ()):
            for path in _given(document.spec, field):
                yield problem(Severity.INFO, NOT_APPLIED, document, ("spec", *path), LATER)


def _given(value: object, field: tuple[str, ...], path: FieldPath = ()) -> Iterator[FieldPath]:
    """The paths under which a field is set."""
    if not field or value is None:
        if value not in (None, (), ""):
            yield path
        return
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _given(item, field, (*path, index))
    elif isinstance(value, BaseModel) and field[0] in type(value).model_fields:
        yield from _given(getattr(value, field[0]), field[1:], (*path, field[0]))
