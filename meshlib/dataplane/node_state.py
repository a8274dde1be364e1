"""What a node keeps of its workloads' configuration, for its next life: files of their own, as a client's.

It is of one node and one control service, with one authority.
"""

from collections.abc import Iterable, Mapping

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.cache import Cache, LastGood
from meshlib.dataplane.impersonated import FOLDER
from meshlib.xds.snapshot import Resource


class NodeState:
    """By what a workload says of itself."""

    def __init__(self, cache: Cache) -> None:
        """Use `node_state`."""
        self._cache = cache

    def load(self, whose: str) -> tuple[Resource, ...]:
        """What is kept; empty: nothing that is of use, which is told if it is odd."""
        found = self._cache.load(whose)
        return () if found is None else found.resources

    def save(self, found: Mapping[str, tuple[Resource, ...]]) -> None:
        """Keeps these; what can't be kept is told once."""
        self._cache.save({whose: LastGood("", resources) for whose, resources in found.items()})

    def remove(self, whose: Iterable[str]) -> None:
        """Keeps nothing of these."""
        self._cache.remove(whose)


def node_state(settings: Bootstrap, node: str) -> NodeState | None:
    """In the state folder; None: nothing is kept."""
    if settings.state_dir is None:
        return None
    anchor = settings.ca_fingerprint or str(settings.ca_file or "")
    return NodeState(Cache(settings.state_dir / FOLDER, ("node", node, settings.control, anchor)))
