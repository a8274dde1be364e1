"""A mesh without a control service: a view made by hand, for tests of what acts on it."""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.core.balance.cluster import Cluster, Limits, Upstream
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.ledger import Ledger
from meshlib.core.mtls import ClientTls
from meshlib.core.route.chain import Connections, FilterChain, Share
from meshlib.core.view import View
from meshlib.dataplane.decode.fault import FAULT
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.dataplane.tls import Contexts
from meshlib.xds import pb

NO_LIMITS = Limits()


class FakeMesh:
    """What a transport asks of a Mesh; every name in the view is known at once."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.ledger = Ledger()
        self.bootstrap = Bootstrap()
        self.network = None
        self.clock = time.monotonic
        self.dice = random.Random(1)
        self.telemetry = Telemetry(Bootstrap(), lambda: self.view)
        self.contexts: Contexts | None = None
        self.failure: Exception | None = None
        """What `prepare` raises."""

    def used_by(self, sender: object) -> None:
        """It is never closed, so there is nobody to tell."""

    def told_to(self, listener: object) -> None:
        """Nothing changes of which it could be told."""

    def prepare(self, name: str) -> View:
        if self.failure is not None:
            raise self.failure
        return self.view

    def known(self, name: str) -> View | None:
        return None if self.failure is not None else self.prepare(name)

    async def aprepare(self, name: str) -> View:
        return self.prepare(name)

    def in_flight(self) -> int:
        """Slots of requests and of retries that are taken."""
        return sum(state.active + state.retries for state in self.ledger.clusters.values())


def fake_connections(
    ports: Sequence[int],
    *,
    limits: Limits = NO_LIMITS,
    chain: Mapping[str, Any] | None = None,
    **upstream: Any,
) -> FakeMesh:
    """Connections to `db:5432` go to cluster `c`, whose endpoints are `ports`; `chain`: of its chain."""
    shares = (Share("c", 1, 1),)
    connections = Connections([FilterChain(shares, **(chain or {}))])
    clusters = {"c": Cluster("c", "c", upstream=Upstream(limits=limits, **upstream))}
    listed = {"c": _endpoints("127.0.0.1", ports)}
    return FakeMesh(View("1", {}, clusters, listed, connections={"db:5432": connections}))


def fake_mesh(
    ports: Sequence[int],
    names: Sequence[str] = ("reviews:9080",),
    *,
    route: Mapping[str, Any] | None = None,
    fault: Mapping[str, Any] | None = None,
    limits: Limits = NO_LIMITS,
    mirror_ports: Sequence[int] = (),
    address: str = "127.0.0.1",
    tls: ClientTls | None = None,
    answered: Mapping[str, str] | None = None,
    **upstream: Any,
) -> FakeMesh:
    """One route for all of `names` to cluster `c`, whose endpoints are `ports`; cluster `m` for mirrors.

    `route` is added to the RouteAction, `fault` is an HTTPFault, both in the JSON of protobuf. `answered` are
    headers that responses are given.
    """
    action = {"cluster": "c", "timeout": "0s", **(route or {})}
    host = {
        "name": "v",
        "domains": ["*"],
        "routes": [{"name": "x", "match": {"prefix": "/"}, "route": action}],
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in (answered or {}).items()
        ],
    }
    config = {"name": "r", "ignore_port_in_host_matching": True, "virtual_hosts": [host]}
    message = pb.from_dict(pb.RouteConfiguration, config)
    if fault is not None:
        settings = message.virtual_hosts[0].typed_per_filter_config
        settings[FAULT].CopyFrom(pb.pack(pb.from_dict(pb.HTTPFault, dict(fault))))
    table = decode_routes(message).of("1")
    clusters = {
        "c": Cluster("c", "c", tls=tls, upstream=Upstream(limits=limits, **upstream)),
        "m": Cluster("m", "m"),
    }
    listed = {"c": _endpoints(address, ports), "m": _endpoints(address, mirror_ports)}
    return FakeMesh(View("1", dict.fromkeys(names, table), clusters, listed))


def _endpoints(address: str, ports: Sequence[int]) -> EndpointSet:
    return EndpointSet((LocalityEndpoints("", 0, 1, tuple(Endpoint(address, port) for port in ports)),))
