"""For which workloads a node may speak: said by an operator, kept in the state folder.

    {"version": 1, "nodes": {"vm1": ["default/ratings", "shop/*"]}}

A node's own identity is `spiffe://<trust domain>/ns/meshlib-node/sa/<name>`. Rules:

- What is not in the file is not allowed. Only whoever can write to the state folder can change it.
- An account is `NAMESPACE/ACCOUNT`, or `NAMESPACE/*` for all of a namespace; no node has all namespaces.
- No node speaks for a node, nor for an operator (an identity of the root namespace).
- The file is looked at with each question: a change is in force at once. One that can't be used changes
  nothing, with a warning.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meshlib.control.ca.store import locked, prepare, read_secret, stamp, sweep, write_secret
from meshlib.control.istio.validity import hosts
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import NODE_NAMESPACE

log = logging.getLogger(__name__)

FILE = "nodes.json"
VERSION = 1
EVERY = "*"

Nodes = Mapping[str, tuple[str, ...]]
"""The accounts of each node, both sorted."""


class Permissions:
    """What the file of a state folder says now. Not thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        """ConfigError: there is a file that can't be used."""
        self._folder = state_dir
        self._stamp = stamp(state_dir / FILE)
        self._nodes = read_nodes(state_dir)
        self._revision = 0

    @property
    def nodes(self) -> Nodes:
        """All of it, taken anew if the file changed."""
        found = stamp(self._folder / FILE)
        if found != self._stamp:
            self._stamp = found
            try:
                self._nodes = read_nodes(self._folder)
                self._revision += 1
            except ConfigError as error:
                log.warning("what nodes may do stays as it was: %s", error)
        return self._nodes

    @property
    def revision(self) -> int:
        """Another number whenever other things may be allowed."""
        _ = self.nodes
        return self._revision

    def known(self, node: str) -> bool:
        """Whether there is a node of that name."""
        return node in self.nodes

    def may(self, node: str, workload: SpiffeId) -> bool:
        """Whether that node may speak for that workload."""
        allowed, namespace = self.nodes.get(node, ()), workload.namespace
        return any(_spelled(namespace, name) in allowed for name in (workload.service_account, EVERY))


def read_nodes(state_dir: Path) -> Nodes:
    """What is on disk; nothing, if there is no file. ConfigError: it can't be used."""
    path = state_dir / FILE
    try:
        said = json.loads(read_secret(path))
        if said["version"] != VERSION:
            raise ValueError(f"version {said['version']!r} is not known here")
        return _checked(said["nodes"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ConfigError(
            f"{path} is broken ({reason}); restore it from a copy, or remove it and allow the nodes anew"
        ) from None


def allow(state_dir: Path, node: str, accounts: Sequence[str], operators: str = "") -> None:
    """From now on that node may speak for these accounts and no others; `operators`: whose namespace it is.

    ConfigError: it can't be written. ValueError: one is no account, or of nobody that a node speaks for.
    """
    found = tuple(sorted({account(text) for text in accounts}))
    for one in found:
        if one.startswith(f"{operators}/"):
            raise ValueError(f"{one!r}: a node can't speak for operators")
    _change(state_dir, {node_name(node): found})


def remove(state_dir: Path, node: str) -> None:
    """There is no such node from now on. ConfigError: there was none."""
    if node not in read_nodes(state_dir):
        raise ConfigError(f"there is no node {node!r}")
    _change(state_dir, {node: None})


def node_name(text: str) -> str:
    """The name of a node. ValueError: it is none."""
    if not hosts.dns_name(text):
        raise ValueError(f"{text[:80]!r} is no name of a node; lower case letters, digits, - and . are")
    return text


def account(text: str) -> str:
    """`NAMESPACE/ACCOUNT` or `NAMESPACE/*`. ValueError: it is neither."""
    namespace, slash, name = text.partition("/")
    if not slash or not hosts.namespace(namespace) or not (name == EVERY or hosts.dns_name(name)):
        raise ValueError(f"{text[:80]!r} is not NAMESPACE/ACCOUNT, nor NAMESPACE/* for all accounts of one")
    if namespace == NODE_NAMESPACE:
        raise ValueError(f"{text[:80]!r}: a node can't speak for nodes")
    return _spelled(namespace, name)


def _change(state_dir: Path, by: Mapping[str, tuple[str, ...] | None]) -> None:
    prepare(state_dir)
    with locked(state_dir):
        sweep(state_dir / FILE)
        merged = {**read_nodes(state_dir), **by}
        nodes = {name: list(accounts) for name, accounts in sorted(merged.items()) if accounts is not None}
        content = json.dumps({"version": VERSION, "nodes": nodes}, indent=1)
        write_secret(state_dir / FILE, content.encode())


def _checked(said: Any) -> Nodes:
    found: dict[str, tuple[str, ...]] = {}
    for name, accounts in said.items():
        if isinstance(accounts, str):
            raise TypeError(name)
        found[node_name(name)] = tuple(sorted({account(one) for one in accounts}))
    return dict(sorted(found.items()))


def _spelled(namespace: str, name: str) -> str:
    return f"{namespace}/{name}"
