"""Who is at the other end of a stream: what a client says of itself in `envoy.config.core.v3.Node`.

Metadata keys are Istio's (NAMESPACE, LABELS, SERVICE_ACCOUNT, GENERATOR, …). The flavour decides
what a client is sent; it comes from metadata, else from the user agent.
"""

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Any

from meshlib.values import dataclass
from meshlib.xds import pb

BIND, LISTEN_PORTS, REUSE_PORT = "BIND", "LISTEN_PORTS", "REUSE_PORT"
"""Metadata of a gateway: where it listens."""
C_CORE = "grpc c-core"
"""How the user agents begin of those languages (Python, C++, Ruby, PHP) whose gRPC is the one in C."""
MAX_CONNECTIONS = "MAX_CONNECTIONS"
"""Metadata of a node's Envoy: how many connections to each listener of a workload there may be."""
NODE_NAME = "NODE_NAME"
"""Metadata of a node's Envoy and of a workload behind one: which node it is (Istio's word)."""


class Flavour(Enum):
    """The kinds of client that one compiler feeds."""

    MESHLIB = "meshlib"
    GRPC = "grpc"
    ENVOY = "envoy"
    GATEWAY = "gateway"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Locality:
    """Where a workload runs: region/zone/subzone, each possibly empty."""

    region: str = ""
    zone: str = ""
    subzone: str = ""

    @classmethod
    def parse(cls, text: str) -> "Locality":
        """From Istio's `region/zone/subzone`."""
        parts = [*text.split("/"), "", "", ""][:3]
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(p for p in (self.region, self.zone, self.subzone) if p)


@dataclass(frozen=True, slots=True)
class Client:
    """What the compiler may know of a client. Equal clients are sent equal resources.

    `id` names the process and is not part of equality: two processes of one workload share
    every compiled resource.
    """

    flavour: Flavour
    namespace: str = "default"
    service_account: str = "default"
    labels: tuple[tuple[str, str], ...] = ()
    locality: Locality = Locality()
    bind: str = ""
    """The address at which a gateway listens, where a Gateway does not say; empty: at all."""
    ports: tuple[tuple[int, int], ...] = ()
    """Ports of Gateways, and those at which a gateway listens in their place."""
    reuse_port: bool = False
    """Whether a gateway shares its ports with others that do."""
    node: str = ""
    """Of flavour node: the name of the node whose workloads it serves."""
    max_connections: int = 0
    """Of flavour node: how many a listener of a workload may have; 0: nothing is said."""
    hasty: bool = False
    """Whether it ends calls one to two seconds before their time, as gRPC's C core does (grpc/grpc#34547)."""
    id: str = field(default="", compare=False)
    version: str = field(default="", compare=False)
    dns_domain: str = "cluster.local"

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels as a mapping."""
        return dict(self.labels)


def to_node(client: Client, *, extra: Mapping[str, Any] | None = None) -> Any:
    """The Node message with which `client` opens a stream; `extra` adds metadata fields."""
    node = pb.Node(
        id=client.id,
        cluster=f"{client.service_account}.{client.namespace}",
        user_agent_name=client.flavour.value,
        user_agent_version=client.version,
    )
    node.locality.region = client.locality.region
    node.locality.zone = client.locality.zone
    node.locality.sub_zone = client.locality.subzone
    node.metadata.update(
        {
            "GENERATOR": client.flavour.value,
            "NAMESPACE": client.namespace,
            "SERVICE_ACCOUNT": client.service_account,
            "LABELS": dict(client.labels),
            **({NODE_NAME: client.node} if client.node else {}),
            **({MAX_CONNECTIONS: client.max_connections} if client.max_connections else {}),
            **(extra or {}),
        }
    )
    return node


def from_node(node: Any) -> Client:
    """What a Node message says; what it leaves out has Istio's default.

    The flavour is metadata GENERATOR; else the user agent (`envoy`, or `gRPC …`, `grpc-node …`);
    else `meshlib`. A node id of Istio's form (`sidecar~ip~pod.ns~domain`) gives the namespace.
    """
    metadata = pb.to_dict(node.metadata) if node.HasField("metadata") else {}
    labels = metadata.get("LABELS")
    parts = node.id.split("~")
    of_id = parts[2].rpartition(".")[2] if len(parts) == 4 else ""
    flavour = _flavour(str(metadata.get("GENERATOR", "")), node.user_agent_name)
    return Client(
        flavour=flavour,
        namespace=str(metadata.get("NAMESPACE") or of_id or "default"),
        service_account=str(metadata.get("SERVICE_ACCOUNT") or "default"),
        labels=tuple(sorted((str(k), str(v)) for k, v in labels.items())) if isinstance(labels, dict) else (),
        bind=str(metadata.get(BIND) or ""),
        ports=_ports(metadata.get(LISTEN_PORTS)),
        reuse_port=metadata.get(REUSE_PORT) is True,
        node=str(metadata.get(NODE_NAME) or "") if flavour is Flavour.NODE else "",
        max_connections=_bound(metadata.get(MAX_CONNECTIONS)) if flavour is Flavour.NODE else 0,
        hasty=node.user_agent_name.lower().startswith(C_CORE),
        locality=Locality(node.locality.region, node.locality.zone, node.locality.sub_zone),
        id=node.id,
        version=node.user_agent_version,
    )


def _ports(said: Any) -> tuple[tuple[int, int], ...]:
    """`{"80": 8080}`; what is no port is left out."""
    found = said.items() if isinstance(said, dict) else ()
    pairs = [
        (int(port), int(own))
        for port, own in found
        if port.isascii() and port.isdecimal() and isinstance(own, float) and 0 < own < 65536
    ]
    return tuple(sorted(pairs))


def _bound(said: Any) -> int:
    """A whole number that Envoy takes for one; else 0."""
    return int(said) if isinstance(said, float) and 0 < said < 2**32 and said.is_integer() else 0


def _flavour(generator: str, user_agent: str) -> Flavour:
    for flavour in Flavour:
        if generator == flavour.value:
            return flavour
    agent = user_agent.lower()
    if agent == "envoy":
        return Flavour.ENVOY
    if agent.startswith("grpc"):
        return Flavour.GRPC
    return Flavour.MESHLIB
