"""The compiler: the graph and a client in, the client's resources out.

- Flavours meshlib and grpc: for every listener asked for, its routes, their clusters and endpoints; a
  host that is not known has routes too, which say what becomes of it.
- The listener of a port that the client itself serves, by its name, says what it asks of its callers.
- Flavour envoy: for every port that speaks HTTP a listener on the loopback address with routes for all
  hosts, for every other port one with chains of connections, and clusters and endpoints of all services and
  subsets. Of several services at a port of TCP the first has it: nothing tells them apart there.
- Flavour node: what every workload behind that Envoy needs, both ways (`node.py`).
- Flavour gateway: the listeners of its Gateways (`gateway.py`), and the clusters that their routes name.

What an earlier compiler made from the same documents and endpoints is taken over as it is.
"""

from collections.abc import Collection, Iterable

from meshlib.control.compile.compiling import Compiling
from meshlib.control.compile.memo import Memo
from meshlib.control.compile.node import of_node
from meshlib.control.graph import Graph
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource


class GraphCompiler:
    """Compiles one graph for any client. Equal arguments give equal results."""

    def __init__(
        self,
        graph: Graph,
        version: str,
        before: "GraphCompiler | None" = None,
        roots_pem: bytes = b"",
        gateways: Collection[tuple[str, str]] = (),
    ) -> None:
        """`version` names the configuration; `before` is the compiler whose results are taken over;
        `roots_pem` are the mesh's roots, without which nobody does mutual TLS; `gateways`, namespace and
        service account, are those that may have keys of Secrets.
        """
        self.gateways = frozenset(gateways)
        self.version = version
        self.roots_pem = roots_pem
        self.graph = graph
        self.memo: Memo = Memo(before.memo if before is not None else None)

    def resources(self, client: Client, listeners: Iterable[str] = ()) -> tuple[Resource, ...]:
        """Everything for a client: `listeners` are the names asked for, of flavours meshlib and grpc."""
        if client.flavour is Flavour.NODE:
            return tuple(of_node(self.graph, self.memo, client, self.roots_pem))
        compiling = self._compiling(client)
        if client.flavour is Flavour.ENVOY:
            return (*compiling.whole(), *compiling.secrets())
        if client.flavour is Flavour.GATEWAY:
            return (*compiling.edge(), *compiling.secrets())
        return (*compiling.closure(sorted(listeners)), *compiling.secrets())

    def notes(self, client: Client, listeners: Iterable[str] = ()) -> tuple[str, ...]:
        """What a client does not get that documents say it has, and why, in sentences."""
        return tuple(self._compiling(client).notes(listeners))

    def _compiling(self, client: Client) -> Compiling:
        return Compiling(self.graph, self.memo, client, self.roots_pem, self.gateways)
