"""Asking an external authority (CUSTOM): over HTTP, through the mesh."""

from meshlib.core.authz.external import Check, NoAnswer, Opinion
from meshlib.dataplane.mesh import Mesh


class Checks:
    """Asks, on a thread."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def __call__(self, check: Check) -> Opinion:
        """The authority's opinion."""
        return NoAnswer(f"{check.filter.authority.cluster} can't be asked yet")


class AsyncChecks:
    """Asks, in a task."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def __call__(self, check: Check) -> Opinion:
        """The authority's opinion."""
        return NoAnswer(f"{check.filter.authority.cluster} can't be asked yet")
