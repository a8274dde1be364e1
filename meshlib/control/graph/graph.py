"""The documents and registrations of one moment as a graph that answers by host.

Building it sorts and indexes; what a client sees of it is worked out when that client asks. A graph
with other registrations shares everything but the endpoints with the one it comes from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from meshlib.control.graph.destinationrules import DestinationRules
from meshlib.control.graph.gateways import Gateways
from meshlib.control.graph.hosts import DOMAIN, HostIndex, is_wildcard
from meshlib.control.graph.peerauthentication import PeerAuthentications
from meshlib.control.graph.policies import KeySource, Policies
from meshlib.control.graph.scope import Scope
from meshlib.control.graph.sidecars import Sidecars
from meshlib.control.graph.telemetries import Telemetries
from meshlib.control.graph.virtualservices import VirtualServices
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.meshconfig import MeshConfig, in_force
from meshlib.control.registration import Registration
from meshlib.control.registry import Registry, build_registry
from meshlib.xds.node import Client, Flavour

Subnet = IPv4Network | IPv6Network


class Graph:
    """Immutable but for what it remembers. Make it with `build_graph`."""

    def __init__(
        self,
        mesh: MeshConfig,
        mesh_fingerprint: str,
        registry: Registry,
        virtual_services: VirtualServices,
        destination_rules: DestinationRules,
        sidecars: Sidecars,
        gateways: Gateways,
        peer_authentications: PeerAuthentications,
        policies: Policies,
        telemetries: Telemetries,
        secrets: Mapping[tuple[str, str], AnyDocument],
        domain: str,
    ) -> None:
        """`mesh_fingerprint` changes whenever the mesh's settings do; `secrets` by namespace and name."""
        self.mesh = mesh
        self.mesh_fingerprint = mesh_fingerprint
        self.registry = registry
        self.virtual_services = virtual_services
        self.destination_rules = destination_rules
        self.sidecars = sidecars
        self.gateways = gateways
        self.peer_authentications = peer_authentications
        self.policies = policies
        self.telemetries = telemetries
        self.secrets = secrets
        self.keys: Mapping[KeySource, str] = {}
        """The key sets (JWKS) that could be fetched so far."""
        self.domain = domain
        self.hosts: Sequence[str] = sorted(registry.services)
        self.wildcard_services: HostIndex[str] = HostIndex()
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._subnets: list[tuple[Subnet, str]] = []
        for host in self.hosts:
            if is_wildcard(host):
                self.wildcard_services.put(host, host)
            for service in registry.services[host]:
                for address in service.addresses:
                    self.addresses[address] = (*self.addresses.get(address, ()), host)
                self._subnets += [(ip_network(subnet, strict=False), host) for subnet in service.subnets]
        self._subnets.sort(key=lambda entry: (-entry[0].prefixlen, entry[1]))
        self._scopes: dict[tuple[str, tuple[tuple[str, str], ...], bool], Scope] = {}

    def around(self, address: str) -> Iterator[str]:
        """The hosts of services of whose subnets one has the IP address in it, the narrowest first."""
        if not self._subnets:
            return
        try:
            where = ip_address(address)
        except ValueError:
            return
        yield from (host for subnet, host in self._subnets if where in subnet)

    def with_registrations(self, registrations: Iterable[Registration]) -> "Graph":
        """The same documents with other servers."""
        made = Graph.__new__(Graph)
        made.__dict__.update(self.__dict__)
        made.registry = self.registry.with_registrations(tuple(registrations))
        made._scopes = {}  # noqa: SLF001 - its own kind
        return made

    def with_keys(self, keys: Mapping[KeySource, str]) -> "Graph":
        """The same with other keys of token issuers."""
        made = Graph.__new__(Graph)
        made.__dict__.update(self.__dict__)
        made.keys = keys
        made._scopes = {}  # noqa: SLF001 - its own kind
        return made

    def scope(self, client: Client) -> Scope:
        """What that client sees."""
        edge = client.flavour is Flavour.GATEWAY
        key = (client.namespace, client.labels, edge)
        found = self._scopes.get(key)
        if found is None:
            labels = client.label_map
            # A Sidecar is never for a gateway (Istio).
            sidecar = None if edge else self.sidecars.find(client.namespace, labels)
            found = self._scopes[key] = Scope(self, client.namespace, labels, sidecar)
        return found


def build_graph(
    documents: Iterable[AnyDocument],
    registrations: Iterable[Registration] = (),
    domain: str = DOMAIN,
    trust_domain: str = "",
) -> Graph:
    """The graph of these documents and servers; `domain` is that of Kubernetes' services.

    `trust_domain` is the one in which certificates are signed; empty: as the documents say.
    """
    kinds: dict[str, list[AnyDocument]] = {}
    documents = tuple(documents)
    for document in documents:
        kinds.setdefault(document.kind, []).append(document)
    meshes = sorted(kinds.get("MeshConfig", ()), key=lambda document: document.age)
    mesh = in_force(meshes[0].spec if meshes else MeshConfig(), trust_domain)
    root = mesh.root_namespace
    peers = PeerAuthentications(kinds.get("PeerAuthentication", ()), root)
    return Graph(
        mesh,
        meshes[0].fingerprint if meshes else "",
        build_registry(documents, tuple(registrations), domain, peers.takes_mutual_tls),
        VirtualServices(kinds.get("VirtualService", ()), mesh.default_virtual_service_export_to, domain),
        DestinationRules(
            kinds.get("DestinationRule", ()), mesh.default_destination_rule_export_to, root, domain
        ),
        Sidecars(kinds.get("Sidecar", ()), root),
        Gateways(kinds.get("Gateway", ())),
        peers,
        Policies(kinds.get("AuthorizationPolicy", ()), kinds.get("RequestAuthentication", ()), root),
        Telemetries(kinds.get("Telemetry", ()), mesh, meshes[0] if meshes else None, root),
        {(document.namespace, document.name): document for document in kinds.get("Secret", ())},
        domain,
    )
