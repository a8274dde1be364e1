"""Documents and registrations to a configuration, reusing what the last one left.

With the same documents only the endpoints are worked out anew; whatever was compiled from documents and
endpoints that did not change is taken over.
"""

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.istio.document import AnyDocument
from meshlib.control.registration import Registration
from meshlib.control.service import Built
from meshlib.control.sources.source import Loaded


class Builder:
    """The `build` of a ControlService; one of its own for each, called one call at a time."""

    def __init__(self) -> None:
        self._documents: tuple[AnyDocument, ...] | None = None
        self._compiler: GraphCompiler | None = None

    def __call__(self, loaded: Loaded, registrations: tuple[Registration, ...], version: str) -> Built:
        """The configuration of that version."""
        before = self._compiler
        if before is not None and self._documents == loaded.documents:
            graph = before.graph.with_registrations(registrations)
        else:
            graph = build_graph(loaded.documents, registrations)
        compiler = GraphCompiler(graph, version, before)
        self._documents, self._compiler = loaded.documents, compiler
        return Built(compiler)
