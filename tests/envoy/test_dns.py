"""A real Envoy has the endpoints that this library has, for the same names, families and answers."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dns_server import dns_server
from support.envoy import RealEnvoy, run_envoy
from support.told_names import ToldNames, told_names

from meshlib.core.balance.cluster import Cluster
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.dns import Resolver
from meshlib.xds import pb

FAMILIES = ("AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL")
TABLE = {
    "both.example": ["127.0.0.1", "127.0.0.2", "::1"],
    "old.example": ["127.0.0.3", "127.0.0.3"],
    "new.example": ["fd00::1", "fd00::2"],
}
HOSTS = (*TABLE, "none.example", "127.0.0.9")
RESOLVER = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
Seen = set[tuple[str, int, int]]
"""Address, weight and priority of each endpoint."""


def endpoint(host: str, weight: int = 1) -> dict[str, Any]:
    address = {"socket_address": {"address": host, "port_value": 80}}
    return {"endpoint": {"address": address}, "load_balancing_weight": weight}


def cluster(name: str, kind: str, family: str, *groups: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [
        {"locality": {"zone": f"z{number}"}, "priority": number, "lb_endpoints": group}
        for number, group in enumerate(groups)
    ]
    return {
        "name": name,
        "type": kind,
        "dns_lookup_family": family,
        "dns_refresh_rate": "0.1s",
        "respect_dns_ttl": True,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": listed},
    }


CLUSTERS = [
    *(
        cluster(f"{kind} {family} {host}", kind, family, [endpoint(host)])
        for kind in ("STRICT_DNS", "LOGICAL_DNS")
        for family in FAMILIES
        for host in HOSTS
    ),
    cluster(
        "several",
        "STRICT_DNS",
        "V4_PREFERRED",
        [endpoint("both.example", 3), endpoint("none.example", 5), endpoint("127.0.0.9", 7)],
        [endpoint("new.example", 2)],
    ),
]


@pytest.fixture
def names() -> Iterator[ToldNames]:
    with told_names() as made:
        made.addresses |= TABLE
        yield made


def for_envoy(made: dict[str, Any], port: int) -> dict[str, Any]:
    asked = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    config = {
        "@type": f"type.googleapis.com/{RESOLVER}",
        "resolvers": [asked],
        "dns_resolver_options": {"no_default_search_domain": True},
        "query_timeout_seconds": 1,
        "query_tries": 1,
    }
    resolver = {"name": "envoy.network.dns_resolver.cares", "typed_config": config}
    return {**made, "typed_dns_resolver_config": resolver}


async def theirs(running: RealEnvoy) -> dict[str, Seen]:
    told = json.loads(await running.get("/clusters?format=json"))
    return {
        one["name"]: {
            (
                host["address"]["socket_address"]["address"],
                host.get("weight", 1),
                host.get("priority", 0),
            )
            for host in one.get("host_statuses", ())
        }
        for one in told["cluster_statuses"]
    }


def ours(known: Cluster, resolver: Resolver) -> Seen | None:
    found = resolver.endpoints(known.name)
    if found is None:
        return None
    return {
        ((one.at or one.address)[0], one.weight, group.priority)
        for group in found.localities
        for one in group.endpoints
    }


async def test_endpoints_are_envoys(names: ToldNames, tmp_path: Path) -> None:
    known = {one["name"]: decode_cluster(pb.from_dict(pb.Cluster, one)) for one in CLUSTERS}
    resolver = Resolver(lambda _: None)

    def mine() -> dict[str, Seen | None]:
        return {name: ours(one, resolver) for name, one in known.items()}

    with dns_server(names) as server:
        static = {"clusters": [for_envoy(one, server.port) for one in CLUSTERS]}
        async with run_envoy({"static_resources": static}, tmp_path) as running:
            for name, one in known.items():
                resolver.follow(name, one)

            async def alike() -> dict[str, Seen | None]:
                for _ in range(300):
                    found, envoys = mine(), await theirs(running)
                    if found == {name: envoys[name] for name in known}:
                        return found
                    await asyncio.sleep(0.05)
                wrong = {name: (seen, envoys[name]) for name, seen in found.items() if seen != envoys[name]}
                raise AssertionError(f"(ours, Envoy's): {wrong}")

            first = await alike()
            assert first["several"] == {
                ("127.0.0.1", 3, 0),
                ("127.0.0.2", 3, 0),
                ("127.0.0.9", 7, 0),
                ("fd00::1", 2, 1),
                ("fd00::2", 2, 1),
            }
            assert first["LOGICAL_DNS V4_ONLY both.example"] == {("127.0.0.1", 1, 0)}
            assert first["STRICT_DNS AUTO none.example"] == set()
            names.down = True
            await asyncio.sleep(0.5)  # several times the refresh rate: nothing is to happen
            assert await alike() == first
            names.down = False
            names.addresses = {"both.example": ["127.0.0.7"], "none.example": ["127.0.0.8"]}
            while (then := await alike())["several"] == first["several"]:
                await asyncio.sleep(0.05)
            while then["several"] != {("127.0.0.7", 3, 0), ("127.0.0.8", 5, 0), ("127.0.0.9", 7, 0)}:
                then = await alike()
            assert then["LOGICAL_DNS V4_ONLY both.example"] == {("127.0.0.7", 1, 0)}
        resolver.close()
