"""What an Envoy holds: what a folder makes for it, or what a control service sends it.

Rules:

- A folder is compiled as by a control service with a certificate authority that lets the gateway have keys.
- A control service is asked as that Envoy, with its certificate or token; keys are never asked for.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.cli.explain_served import loaded
from meshlib.control.registration import Registration
from meshlib.errors import ControlUnavailable
from meshlib.xds import pb
from meshlib.xds.kinds import BY_TYPE_URL, Kind
from meshlib.xds.node import BIND, LISTEN_PORTS, Client, to_node

PATIENCE, TRIES = 20.0, 2
_ASKED = (Kind.CLUSTER, Kind.ENDPOINTS, Kind.LISTENER, Kind.ROUTES)
_HCM = pb.type_url(pb.HttpConnectionManager)


@dataclass
class Held:
    """Messages by kind and name."""

    version: str = ""
    messages: dict[Kind, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in Kind})
    notes: tuple[str, ...] = ()
    """What documents say that it has, and it is not sent, and why; of a control service nothing is known."""

    def of(self, kind: Kind) -> Mapping[str, Any]:
        """Those of a kind."""
        return self.messages[kind]


def held_of_folder(folder: Path, client: Client, registrations: tuple[Registration, ...] = ()) -> Held:
    """What a folder makes for that client. ConfigError: it can't be read."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from meshlib.control.build import Builder
    from meshlib.control.ca.issuer import make_root

    now = time.time()
    _, root = make_root("explain", "cluster.local", now)
    version = f"{int(now * 1000)}.1"
    build = Builder(gateways=[(client.namespace, client.service_account)])
    compiler: Any = build(loaded(folder), registrations, version, root.public_bytes(Encoding.PEM)).compiler
    found = Held(version, notes=compiler.notes(client))
    for resource in compiler.resources(client):
        found.messages[resource.kind][resource.name] = resource.message()
    return found


def held_of_control(settings: Bootstrap, client: Client) -> Held:
    """What a running control service sends that client. MeshError: it is not reached, or says no."""
    from meshlib.dataplane.mesh import identity, secured

    certs = None if settings.allow_plaintext else identity(settings)
    try:
        if certs is not None:
            certs.ensure()
        asking = _Asking(client)
        kept = secured(certs)("meshlib-explain", settings.control, pb.DELTA_ADS, asking)
        kept.start()
        try:
            if not asking.done.wait(PATIENCE) or asking.tries >= TRIES:
                why = asking.failure or "it says nothing"
                raise ControlUnavailable(f"no answer from the control service {settings.control}: {why}")
        finally:
            kept.close()
    finally:
        if certs is not None:
            certs.close()
    return asking.held


class _Asking:
    """Asks for everything of a client once. A `grpc_stream.Talk`."""

    def __init__(self, client: Client) -> None:
        ports = {str(port): own for port, own in client.ports}
        self._node = to_node(
            client, extra={BIND: client.bind, LISTEN_PORTS: ports} if ports or client.bind else None
        )
        self.held = Held()
        self.done = threading.Event()
        self.failure, self.tries = "", 0
        self._due: list[Any] = []
        self._wanted: dict[Kind, set[str]] = {}
        self._heard: dict[Kind, set[str]] = {}

    def opened(self) -> None:
        self._wanted, self._heard = {Kind.ENDPOINTS: set(), Kind.ROUTES: set()}, {}
        self._due = [
            pb.DeltaDiscoveryRequest(type_url=kind.type_url) for kind in (Kind.CLUSTER, Kind.LISTENER)
        ]
        self._due[0].node.CopyFrom(self._node)

    def ask(self) -> Iterable[bytes]:
        due, self._due = self._due, []
        return [message.SerializeToString() for message in due]

    def take(self, message: bytes) -> None:
        response = pb.DeltaDiscoveryResponse.FromString(message)
        kind = BY_TYPE_URL[response.type_url]
        heard = self._heard.setdefault(kind, set())
        heard.update(response.removed_resources)
        for one in response.resources:
            heard.add(one.name)
            self.held.messages[kind][one.name] = pb.unpack(one.resource)
        self.held.version = response.system_version_info or self.held.version
        self._due.append(pb.DeltaDiscoveryRequest(type_url=kind.type_url, response_nonce=response.nonce))
        if kind is Kind.CLUSTER:
            self._want(
                Kind.ENDPOINTS, (n for n, one in self.held.of(kind).items() if one.type == pb.Cluster.EDS)
            )
        elif kind is Kind.LISTENER:
            self._want(Kind.ROUTES, (n for one in self.held.of(kind).values() for n in routes_of(one)))
        whole = {Kind.CLUSTER, Kind.LISTENER} <= self._heard.keys()
        if whole and all(names <= self._heard.get(each, set()) for each, names in self._wanted.items()):
            self.done.set()

    def _want(self, kind: Kind, names: Iterable[str]) -> None:
        new = sorted(set(names) - self._wanted[kind])
        self._wanted[kind].update(new)
        if new:
            self._due.append(pb.DeltaDiscoveryRequest(type_url=kind.type_url, resource_names_subscribe=new))

    def pause(self) -> float:
        return PATIENCE

    def ended(self, why: str) -> float:
        self.failure = why
        self.tries += 1
        if self.tries >= TRIES:
            self.done.set()
        return 0.1


def managers_of(chain: Any) -> list[Any]:
    """The connection managers of a filter chain."""
    return [pb.unpack(each.typed_config) for each in chain.filters if each.typed_config.type_url == _HCM]


def routes_of(listener: Any) -> list[str]:
    """The names of the route configurations to which a listener leads."""
    found = [manager for chain in listener.filter_chains for manager in managers_of(chain)]
    return [manager.rds.route_config_name for manager in found if manager.HasField("rds")]
