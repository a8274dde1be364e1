"""What one client should hold: an immutable set of serialised resources, and what changed since.

A resource's version is a hash of its bytes, so equal content has an equal version on every
control service and after every restart, and nothing unchanged is ever sent twice.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from meshlib.values import dataclass
from meshlib.xds import pb
from meshlib.xds.kinds import Kind


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, serialised once and shared by every client that is sent it."""

    kind: Kind
    name: str
    version: str
    body: bytes
    """The serialised message (not the Any around it)."""

    @classmethod
    def of(cls, kind: Kind, name: str, message: Any) -> "Resource":
        """Serialises `message` deterministically."""
        body = message.SerializeToString(deterministic=True)
        return cls(kind, name, hashlib.blake2b(body, digest_size=8).hexdigest(), body)

    def message(self) -> Any:
        """The message again, decoded anew at each call."""
        return pb.message(self.kind.type_url.rpartition("/")[2]).FromString(self.body)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every resource of one client at one moment. `version` names the configuration it came from.

    Versions of snapshots count up while a control service lives and carry its start time in
    front, so that they also grow over a restart: `<start, ms>.<count>`.
    """

    version: str
    resources: Mapping[Kind, Mapping[str, Resource]] = field(default_factory=dict)

    @classmethod
    def of(cls, version: str, resources: Iterable[Resource]) -> "Snapshot":
        """Groups resources by kind; a later one of the same name wins."""
        grouped: dict[Kind, dict[str, Resource]] = {}
        for resource in resources:
            grouped.setdefault(resource.kind, {})[resource.name] = resource
        return cls(version, grouped)

    def get(self, kind: Kind, name: str) -> Resource | None:
        """The resource of that kind and name, or None."""
        return self.resources.get(kind, {}).get(name)

    def names(self, kind: Kind) -> frozenset[str]:
        """The names of all resources of a kind."""
        return frozenset(self.resources.get(kind, ()))

    def __iter__(self) -> Iterator[Resource]:
        for kind in Kind:
            yield from self.resources.get(kind, {}).values()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.resources[k])} {k.short}" for k in Kind if self.resources.get(k))
        return f"Snapshot({self.version!r}, {counts or 'empty'})"
