"""Which servers of which Gateways a gateway's workload serves, port by port.

Rules (Istio):

- A Gateway is for the workloads that carry all labels of its selector, in whatever namespace; one without a
  selector is for every gateway.
- Several share a place to listen, an address with a port, oldest first, however each of them spells it. The
  first says what is spoken there: servers of HTTP add up, so do those of TLS, each with hosts of its own; of
  TCP there is one. A later server that does not fit is left out.
- A host of TLS that is served at the port already leaves its server out: nothing would tell the two apart.
- A host is `[namespace/]host`: only VirtualServices of that namespace may have it; `.` is the Gateway's own
  namespace, `*` or nothing any.
"""

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from meshlib.control.graph.hosts import covers
from meshlib.control.graph.visibility import by_age
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.gateway import Server, ServerTLSMode

ANYWHERE = "0.0.0.0"  # noqa: S104 - an edge is for everybody
UNIX = "unix://"
_HTTP = ("HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB")
_PASSING = (ServerTLSMode.PASSTHROUGH, ServerTLSMode.AUTO_PASSTHROUGH)


class Speaks(Enum):
    """What a port of a gateway speaks."""

    HTTP = "HTTP"
    TLS = "TLS"
    TCP = "TCP"


@dataclass(frozen=True, slots=True)
class Served:
    """A server of a Gateway."""

    document: AnyDocument
    number: int
    """Its place in the document's list."""
    server: Server
    hosts: tuple[tuple[str, str], ...]
    """Namespace (`*`: any) and host of each, the host in lower case."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the Gateway."""
        return self.document.namespace, self.document.name

    @property
    def source(self) -> str:
        """`file:line`."""
        return self.document.source("spec", "servers", self.number)

    @property
    def port(self) -> int:
        """The port's number."""
        return self.server.port.number if self.server.port is not None else 0

    @property
    def port_name(self) -> str:
        """The port's name."""
        return self.server.port.name if self.server.port is not None else ""

    @property
    def speaks(self) -> Speaks:
        """What it speaks on the wire."""
        upper = self.server.port.protocol.upper() if self.server.port is not None else ""
        if upper in _HTTP:
            return Speaks.HTTP
        return Speaks.TLS if upper in ("HTTPS", "TLS") else Speaks.TCP

    @property
    def passes_through(self) -> bool:
        """Whether it hands TLS on as it came."""
        tls = self.server.tls
        return self.speaks is Speaks.TLS and tls is not None and tls.mode in _PASSING

    @property
    def of_requests(self) -> bool:
        """Whether it looks at requests, not at connections alone."""
        if self.speaks is not Speaks.TLS:
            return self.speaks is Speaks.HTTP
        named = self.server.port is not None and self.server.port.protocol.upper() == "HTTPS"
        return named and not self.passes_through

    def serves(self, host: str, namespace: str) -> bool:
        """Whether the whole of a host is its own, for VirtualServices of `namespace`."""
        return any(place in ("*", namespace) and covers(own, host) for place, own in self.hosts)

    def shared(self, hosts: Iterable[str], namespace: str) -> Iterator[str]:
        """What these hosts of a VirtualService of `namespace` and its own have in common; each once."""
        found: dict[str, None] = {}
        for wanted in hosts:
            for place, host in self.hosts:
                if place not in ("*", namespace):
                    continue
                if covers(host, wanted):
                    found[wanted] = None
                elif covers(wanted, host):
                    found[host] = None
        yield from found


@dataclass(slots=True)
class Opened:
    """A place where a gateway listens, with all that is served there."""

    address: str
    own_port: int
    """Where it listens, which may be another port than that of its Gateways."""
    port: int
    """Of the first server."""
    bind: str
    """As the first server says it; empty: it does not."""
    speaks: Speaks
    served: list[Served] = field(default_factory=list)
    skipped: list[tuple[Served, str]] = field(default_factory=list)
    """Servers that are left out, and why."""


class Gateways:
    """All Gateways, answered by the labels of a workload."""

    def __init__(self, documents: Iterable[AnyDocument]) -> None:
        self._documents = by_age(list(documents))

    def opened(
        self,
        labels: Mapping[str, str],
        address: str = ANYWHERE,
        own_port: Callable[[int], int] = lambda port: port,
    ) -> tuple[Opened, ...]:
        """The places of such a workload, in order; `address` is for servers that do not say `bind`."""
        ports: dict[tuple[str, int], Opened] = {}
        for served in self._served(labels):
            bind = served.server.bind
            place = (_address(bind or address), own_port(served.port))
            there = ports.setdefault(place, Opened(*place, served.port, bind, served.speaks))
            reason = _conflict(there, served) if there.served else ""
            if reason:
                there.skipped.append((served, reason))
            else:
                there.served.append(served)
        return tuple(ports[place] for place in sorted(ports))

    def _served(self, labels: Mapping[str, str]) -> Iterator[Served]:
        for document in self._documents:
            if all(labels.get(name) == value for name, value in document.spec.selector.items()):
                for number, server in enumerate(document.spec.servers):
                    hosts = tuple(_host(text, document.namespace) for text in server.hosts)
                    yield Served(document, number, server, hosts)


def _host(text: str, namespace: str) -> tuple[str, str]:
    place, slash, host = text.partition("/")
    if not slash:
        place, host = "*", text
    return (namespace if place == "." else place), host.lower()


def _address(text: str) -> str:
    """As everybody would spell it."""
    return text if text.startswith(UNIX) else str(ipaddress.ip_address(text))


def _conflict(there: Opened, served: Served) -> str:
    first, port = there.served[0].document.title, f"port {served.port}"
    if served.port != there.port:
        port += f", which listens where port {there.port} does,"
    if there.speaks is not served.speaks:
        return f"{port} speaks {there.speaks.value} already, by {first}"
    if there.speaks is Speaks.TCP:
        return f"{port} is {first}'s already, and nothing tells connections of TCP apart"
    if there.speaks is Speaks.TLS:
        taken = {host: one.document.title for one in there.served for _, host in one.hosts}
        for _, host in served.hosts:
            if host in taken:
                return f"the host {host} is served at port {served.port} already, by {taken[host]}"
    return ""
