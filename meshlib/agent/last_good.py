"""What the control service last sent for each workload of a node, and its Envoy took.

    one stream ──► `Heard` ──► `LastGood`, by workload ──► a folder

Rules:

- All of a workload's resources have its name before their own; what has none is everybody's.
- It is kept of a workload once that is ready, and only whole: its listener is there, nothing that was asked
  for is missing, nothing waits for Envoy's word. What Envoy refuses is as if it had not come.
- It is of that very workload: of another one with its name, account, namespace or ports it is not used.
- When a workload leaves, what is kept of it goes; not when its node ends.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from meshlib.agent.workload import Workload
from meshlib.xds import pb
from meshlib.xds.kinds import BY_TYPE_URL, Kind
from meshlib.xds.server_stream import WILDCARD
from meshlib.xds.snapshot import Resource

INBOUND = "inbound"
"""The listener that every workload has."""
Key: TypeAlias = tuple[Kind, str]
Known: TypeAlias = Callable[[Kind, str, str], Resource | None]
"""The resource of a kind, name and version, if it is known."""


class Store(Protocol):
    """Where it is kept beyond the life of the agent, by what a workload says of itself."""

    def load(self, whose: str) -> tuple[Resource, ...]:
        """What is kept; empty: nothing that is of use."""

    def save(self, found: Mapping[str, tuple[Resource, ...]]) -> None:
        """Keeps these."""

    def remove(self, whose: Iterable[str]) -> None:
        """Keeps nothing of these."""


class Heard:
    """What one incremental stream brought."""

    def __init__(self, known: Known) -> None:
        """`known`: what an Envoy may say that it has from an earlier stream."""
        self._known = known
        self._kinds: set[Kind] = set()
        self._missing: set[Key] = set()
        """Asked for and not answered; or there, and nobody knows what it is."""
        self._pending: dict[str, dict[Key, Resource | None]] = {}
        """What was there before, by nonce of the response."""
        self.resources: dict[Key, Resource] = {}
        self.responses = 0
        """How many came."""
        self.touched: set[str] = set()
        """Whose resources are others, by `owner`; whoever has seen to it empties it."""

    def asked(self, request: Any) -> None:
        """Envoy said this: a DeltaDiscoveryRequest."""
        kind = BY_TYPE_URL.get(request.type_url)
        if kind is None:
            return
        before = self._pending.pop(request.response_nonce, {})
        if request.HasField("error_detail"):
            for key, resource in before.items():
                self._put(key, resource)
        if kind not in self._kinds:
            self._kinds.add(kind)
            for name, version in request.initial_resource_versions.items():
                found = self._known(kind, name, version)
                self._put((kind, name), found)
                if found is None:
                    self._missing.add((kind, name))
        asked = {(kind, name) for name in request.resource_names_subscribe if name != WILDCARD}
        self._missing |= asked - self.resources.keys()
        for name in request.resource_names_unsubscribe:
            self._put((kind, name), None)

    def said(self, response: Any) -> None:
        """The control service said this: a DeltaDiscoveryResponse."""
        kind = BY_TYPE_URL.get(response.type_url)
        if kind is None:
            return
        self.responses += 1
        new: dict[Key, Resource | None] = {(kind, name): None for name in response.removed_resources}
        for one in response.resources:
            new[kind, one.name] = Resource(kind, one.name, one.version, one.resource.value)
        self._pending[response.nonce] = {key: self.resources.get(key) for key in new}
        for key, resource in new.items():
            self._put(key, resource)

    def whole(self, owners: Iterable[str]) -> set[str]:
        """Those of whom there is all now. On a stream that has just begun more may be about to come."""
        if self._pending:
            return set()
        lacking = {owner(name) for _, name in self._missing}
        return set() if "" in lacking else {one for one in owners if one not in lacking and self._serves(one)}

    def _serves(self, one: str) -> bool:
        return (Kind.LISTENER, f"{one}/{INBOUND}") in self.resources

    def by_owner(self, owners: Iterable[str]) -> dict[str, tuple[Resource, ...]]:
        """The resources of each, with those of everybody."""
        found: dict[str, list[Resource]] = {one: [] for one in owners}
        shared: list[Resource] = []
        for (_, name), resource in self.resources.items():
            (found.get(whose, []) if (whose := owner(name)) else shared).append(resource)
        return {one: (*resources, *shared) for one, resources in found.items()}

    def _put(self, key: Key, resource: Resource | None) -> None:
        self._missing.discard(key)
        if resource is None:
            self.resources.pop(key, None)
        else:
            self.resources[key] = resource
        if key[0] is not Kind.RUNTIME:  # of which each workload has kept its own part when it was touched
            self.touched.add(owner(key[1]))


class LastGood:
    """By workload."""

    def __init__(self, store: Store | None) -> None:
        """`store` None: it is in memory alone."""
        self._store = store
        self._of: dict[Workload, tuple[Resource, ...]] = {}

    def of(self, workload: Workload) -> tuple[Resource, ...]:
        """What is known of it; empty: nothing."""
        found = self._of.get(workload)
        if found is None:
            found = () if self._store is None else self._store.load(_said(workload))
            self._of[workload] = found
        return found

    def take(self, found: Mapping[Workload, tuple[Resource, ...]]) -> None:
        """This is it now."""
        self._of.update(found)

    def save(self, found: Mapping[Workload, tuple[Resource, ...]]) -> None:
        """Keeps what was taken; on any thread."""
        if self._store is not None:
            self._store.save({_said(workload): resources for workload, resources in found.items()})

    def leave(self, staying: Iterable[Workload]) -> None:
        """All others are gone, for good."""
        gone = self._of.keys() - set(staying)
        for one in gone:
            del self._of[one]
        if gone and self._store is not None:
            self._store.remove(map(_said, gone))


def _said(workload: Workload) -> str:
    return json.dumps(workload.said(), sort_keys=True)


def together(found: Iterable[Resource]) -> Iterator[Resource]:
    """What was kept of several workloads, with one Runtime: each has another, of when it was kept."""
    runtime = pb.message(Kind.RUNTIME.type_url.rpartition("/")[2])()
    for one in found:
        if one.kind is Kind.RUNTIME:
            runtime.MergeFrom(one.message())
        else:
            yield one
    if runtime.name:
        yield Resource.of(Kind.RUNTIME, runtime.name, runtime)


def owner(name: str) -> str:
    """Whose resource that is, by its name; empty: everybody's."""
    before, found, _ = name.partition("/")
    return before if found else ""
