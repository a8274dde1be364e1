"""From documents and registrations to what clients are served: graph, compiler, and what the analyses say.

The analyses are handed on, to run after the configuration is served.

A builder remembers its last result, so that what did not change is neither resolved nor compiled again:
a server that joins touches endpoints only.
"""

from collections.abc import Callable, Mapping
from functools import partial

from meshlib.control.analysis.analyze import analyze
from meshlib.control.built import Built
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import Graph, build_graph
from meshlib.control.graph.policies import KeySource
from meshlib.control.registration import Registration
from meshlib.control.sources.source import Loaded

Keys = Callable[[Mapping[KeySource, float]], Mapping[KeySource, str]]
"""What is known now of the keys of these sources, without waiting; see `control.jwks`."""


class Builder:
    """Builds one configuration after the other. Not thread-safe: the control service builds one at a time."""

    def __init__(self, keys: Keys = lambda wanted: {}) -> None:
        """`keys` knows the keys of token issuers that do not stand in the documents."""
        self._keys = keys
        self._loaded: Loaded | None = None
        self._graph: Graph | None = None
        self._compiler: GraphCompiler | None = None

    def __call__(
        self,
        loaded: Loaded,
        registrations: tuple[Registration, ...],
        version: str,
        roots_pem: bytes = b"",
    ) -> Built:
        """The configuration of that version; `roots_pem` are the mesh's roots."""
        if self._graph is None or loaded is not self._loaded:
            self._graph = build_graph(loaded.documents, registrations)
            self._loaded = loaded
            analyse = partial(analyze, loaded.documents, loaded.problems)
        else:
            self._graph = self._graph.with_registrations(registrations)
            analyse = None
        self._graph = self._graph.with_keys(self._keys(self._graph.policies.key_sources()))
        self._compiler = GraphCompiler(self._graph, version, before=self._compiler, roots_pem=roots_pem)
        return Built(self._compiler, analyse=analyse)
