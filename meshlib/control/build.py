"""From documents and registrations to what clients are served: graph, compiler, and what the analyses say.

The analyses are handed on, to run after the configuration is served.

A builder remembers its last result, so that what did not change is neither resolved nor compiled again:
a server that joins touches endpoints only.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from meshlib.control.analysis.analyze import analyze
from meshlib.control.built import Built
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import Graph, build_graph
from meshlib.control.graph.policies import KeySource
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.meshconfig import domain_name
from meshlib.control.istio.problem import NOT_IN_FORCE, Problem, Severity
from meshlib.control.registration import Registration
from meshlib.control.sources.source import Loaded

Keys = Callable[[Mapping[KeySource, float]], Mapping[KeySource, str]]
"""What is known now of the keys of these sources, without waiting; see `control.jwks`."""


class Builder:
    """Builds one configuration after the other. Not thread-safe: the control service builds one at a time."""

    def __init__(
        self,
        keys: Keys = lambda wanted: {},
        trust_domain: str = "",
        gateways: Collection[tuple[str, str]] = (),
    ) -> None:
        """`keys` knows the keys of token issuers that do not stand in the documents.

        `trust_domain` is the one in which certificates are signed; empty: as the documents say. `gateways`,
        namespace and service account, may have keys of Secrets.
        """
        self._gateways = frozenset(gateways)
        self._keys = keys
        self._trust_domain = trust_domain
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
            self._graph = build_graph(loaded.documents, registrations, trust_domain=self._trust_domain)
            self._loaded = loaded
            analyse = partial(analyze, loaded.documents, loaded.problems)
        else:
            self._graph = self._graph.with_registrations(registrations)
            analyse = None
        self._graph = self._graph.with_keys(self._keys(self._graph.policies.key_sources()))
        made = GraphCompiler(self._graph, version, self._compiler, roots_pem, self._gateways)
        self._compiler = made
        problems = tuple(_of_trust_domain(loaded.documents, self._trust_domain))
        return Built(made, problems, analyse, made.notes, self._graph.mesh)


def _of_trust_domain(documents: Iterable[AnyDocument], running: str) -> Iterator[Problem]:
    """What is wrong if the documents ask for another trust domain than certificates are signed in."""
    found = sorted((one for one in documents if one.kind == "MeshConfig"), key=lambda one: one.age)
    if not found or not running:
        return
    spec = found[0].spec
    if "trust_domain" not in spec.model_fields_set or domain_name(spec.trust_domain) == running:
        return
    yield Problem(
        Severity.WARNING,
        NOT_IN_FORCE,
        f"certificates are still signed in {running!r}, in which the control service was started; to change "
        f"that, list {running!r} under trustDomainAliases, so that certificates in use stay good, and "
        "restart the control service without --trust-domain, or with the new one",
        document=found[0].title,
        file=found[0].file,
        line=found[0].line_of(("trustDomain",)) or found[0].line,
        field="trustDomain",
        found=repr(spec.trust_domain),
    )
