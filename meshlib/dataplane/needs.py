"""Which resource names which, so that a change costs what it touches and no more.

    target ──► routes, clusters, the mesh's roots          cluster ──► endpoints, the mesh's roots

A resource is needed for as long as something needed names it, or, a listener, somebody wants it.
"""

from collections.abc import Iterable, Iterator

from meshlib.xds.kinds import Kind

Key = tuple[Kind, str]
"""A resource by kind and name."""

_NOBODY: frozenset[Key] = frozenset()
_CALLERS: Key = (Kind.LISTENER, "")
"""Stands for those who want a target."""


class Needs:
    """The names in both directions. Not thread-safe."""

    def __init__(self) -> None:
        self._named: dict[Key, frozenset[Key]] = {}
        self._users: dict[Key, set[Key]] = {}
        self._turned: set[Key] = set()

    def __repr__(self) -> str:
        return f"Needs({len(self._users)})"

    def __contains__(self, key: Key) -> bool:
        return key in self._users

    def __iter__(self) -> Iterator[Key]:
        return iter(self._users)

    def users(self, key: Key) -> Iterable[Key]:
        """What names a resource."""
        return self._users.get(key, _NOBODY)

    def targets(self, key: Key) -> Iterator[str]:
        """The targets that a resource is a part of; some may come twice."""
        if key[0] is Kind.LISTENER:
            yield key[1]
            return
        for user in self._users.get(key, _NOBODY):
            yield from self.targets(user)

    def want(self, target: str) -> None:
        """Somebody wants a target."""
        self._use((Kind.LISTENER, target), _CALLERS)

    def forget(self, target: str) -> None:
        """Nobody wants a target."""
        self._leave((Kind.LISTENER, target), _CALLERS)

    def name(self, user: Key, names: frozenset[Key]) -> None:
        """All that a resource names from now on."""
        before = self._named.pop(user, _NOBODY)
        if names:
            self._named[user] = names
        for key in names - before:
            self._use(key, user)
        for key in before - names:
            self._leave(key, user)

    def turned(self) -> set[Key]:
        """What came to be needed, or is not any more, since this was asked last, if only for a while."""
        found, self._turned = self._turned, set()
        return found

    def _use(self, key: Key, user: Key) -> None:
        users = self._users.get(key)
        if users is None:
            self._users[key] = {user}
            self._turned.add(key)
        else:
            users.add(user)

    def _leave(self, key: Key, user: Key) -> None:
        users = self._users.get(key)
        if users is None:
            return
        users.discard(user)
        if not users:
            del self._users[key]
            self._turned.add(key)
