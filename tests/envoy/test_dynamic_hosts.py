"""Hosts that requests name themselves are ejected as a real Envoy's dynamic forward proxy does it."""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.envoy import run_envoy
from support.oracle_outlier import Host, address

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failed, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.dns import DYNAMIC
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import AsyncBody, FlightFailed, adrive
from meshlib.dataplane.http.asynchronous import Connections, Response
from meshlib.xds import pb

FILTER = "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig"


@dataclass(frozen=True, slots=True)
class Case:
    """A detection in Envoy's JSON, and requests: the number of a host, and what it answers."""

    name: str
    detection: Mapping[str, Any]
    requests: Sequence[tuple[int, str]]

    @property
    def cache(self) -> dict[str, Any]:
        """Of its own: an Envoy counts all hosts of a cache."""
        return {"name": self.name, "dns_lookup_family": "V4_ONLY"}

    @property
    def cluster(self) -> dict[str, Any]:
        """In Envoy's JSON."""
        config = {"@type": f"type.googleapis.com/{DYNAMIC}", "dns_cache_config": self.cache}
        return {
            "name": self.name,
            "connect_timeout": "5s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy", "typed_config": config},
            "outlier_detection": {"interval": "60s", "base_ejection_time": "60s", **self.detection},
        }

    @property
    def routes(self) -> dict[str, Any]:
        """A RouteConfiguration in Envoy's JSON."""
        route = {"match": {"prefix": "/"}, "route": {"cluster": self.name, "timeout": "5s"}}
        hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
        return {"name": self.name, "virtual_hosts": hosts}

    @property
    def listener(self) -> dict[str, Any]:
        """In Envoy's JSON."""
        proxy = {"@type": f"type.googleapis.com/{FILTER}", "dns_cache_config": self.cache}
        manager = {
            "@type": pb.type_url(pb.HttpConnectionManager),
            "stat_prefix": "x",
            "http_filters": [
                {"name": "proxy", "typed_config": proxy},
                {"name": "router", "typed_config": {"@type": pb.type_url(pb.Router)}},
            ],
            "route_config": self.routes,
        }
        chain = {"filters": [{"name": "http", "typed_config": manager}]}
        return {"name": self.name, "address": address(0), "filter_chains": [chain]}


SETTLED = 0.03
"""Seconds in which an Envoy has told its workers of an ejection."""
ALL = {"consecutive_5xx": 3, "max_ejection_percent": 100}
CASES = [
    Case("one", ALL, [(0, "500")] * 5),
    Case("set back", ALL, [(0, "500"), (0, "500"), (0, "200"), *[(0, "500")] * 4]),
    Case("of two", ALL, [(1, "200"), *[(0, "500")] * 4, (1, "200"), (1, "500"), (0, "200")]),
    Case("both", ALL, [*[(0, "500")] * 4, *[(1, "503")] * 4, (0, "200"), (1, "200")]),
    # One of one is more than half of them, one of two is not.
    Case("half", {**ALL, "max_ejection_percent": 50}, [*[(0, "500")] * 4, (1, "200"), *[(0, "500")] * 4]),
    Case("a tenth", {"consecutive_5xx": 3}, [(1, "200"), *[(0, "500")] * 5]),
    Case("refused", ALL, [(1, "200"), *[(0, "refused")] * 4, (0, "200"), (1, "200")]),
]


class Hands:
    """Sends for the driver."""

    def __init__(self) -> None:
        self.connections = Connections(time.monotonic)

    async def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        return await self.connections.send(attempt, b"")

    def mirror(self, mirror: Mirror) -> None:
        """No case has mirrors."""
        raise AssertionError(mirror)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


async def theirs(case: Case, hosts: Sequence[Host], port: int) -> list[int]:
    """The statuses of a real Envoy."""
    statuses = []
    for number, word in case.requests:
        await hosts[number].be(word)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = f"GET / HTTP/1.1\r\nhost: 127.0.0.1:{hosts[number].port}\r\nconnection: close\r\n\r\n"
        writer.write(asked.encode())
        statuses.append(int((await reader.readline()).split()[1]))
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(SETTLED)
    return statuses


async def ours(case: Case, hosts: Sequence[Host]) -> list[int]:
    """The statuses of our whole path."""
    made = decode_cluster(pb.from_dict(pb.Cluster, case.cluster))
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, case.routes))
    view, ledger, hands = View("1", {"x:80": table}, {case.name: made}), Ledger(), Hands()
    dice, statuses = random.Random(1), []
    for number, word in case.requests:
        await hosts[number].be(word)
        head = RequestHead("GET", "http", f"127.0.0.1:{hosts[number].port}", "/", [])
        body, nowhere = RequestBody(b""), ("127.0.0.1", 1)
        steps = flow(head, body, view, "x:80", ledger, time.monotonic, dice, nowhere)
        try:
            answer = await adrive(steps, hands)
        except FlightFailed:
            statuses.append(503)  # what Envoy answers itself
            continue
        if isinstance(answer.body, AsyncBody):
            async for _ in answer.body:
                pass
        statuses.append(answer.status)
    hands.connections.close()
    await asyncio.sleep(0)
    return statuses


async def test_who_is_ejected_is_envoys(tmp_path: Path) -> None:
    everything = {
        "listeners": [each.listener for each in CASES],
        "clusters": [each.cluster for each in CASES],
    }
    async with contextlib.AsyncExitStack() as stack:
        hosts = {case.name: [Host(), Host()] for case in CASES}
        for host in (host for each in hosts.values() for host in each):
            stack.push_async_callback(host.close)
        async with run_envoy({"static_resources": everything}, tmp_path) as envoy:
            expected = {
                case.name: await theirs(case, hosts[case.name], envoy.listeners[case.name]) for case in CASES
            }
        assert {case.name: await ours(case, hosts[case.name]) for case in CASES} == expected
    assert expected["one"] == [500, 500, 500, 503, 503]
