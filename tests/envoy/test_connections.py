"""A real Envoy sends a connection to the cluster that this library picks, by address, name and weight."""

import json
import os
import random
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import control, wait_until
from support.envoy import run_envoy
from support.envoy_client import envoy
from support.named_tcp import named_tcp
from support.ports import free_port

import meshlib
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in
from meshlib.core.route.chain import Connections
from meshlib.dataplane.decode.tcp import decode_connections
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

SEED = int(os.environ.get("ORACLE_SEED", "1"))
LISTENERS = int(os.environ.get("ORACLE_CASES", "60"))
PROBES = 12
SERVERS = ("s0", "s1", "s2", "s3")
NAMES = (
    *("a.example", "b.example", "x.a.example", "y.x.a.example", "z.b.example", "example", "A.Example"),
    *("xa.example", "other.test", ""),
)
ASKED = ("a.example", "b.example", "x.a.example", "*.a.example", "*.x.a.example", "*.example", "B.example")
ADDRESSES = ("127.0.0.1", "127.1.0.1", "127.1.2.3", "127.1.2.4", "127.2.0.1", "127.200.0.9")
SUBNETS = (
    *("127.0.0.0/8", "127.1.0.0/16", "127.1.2.0/24", "127.1.2.3", "127.1.2.3/32", "127.2.0.0/15"),
    *("10.0.0.0/8", "0.0.0.0/0", "127.1.2.9/16"),
)
KEPT = ("filter_chains", "default_filter_chain")


def case(dice: random.Random, protocol: str) -> str:
    """A host at a port of that protocol, and rules of connections to it."""

    def some(of: tuple[str, ...], most: int, least: int = 0) -> list[str]:
        return dice.sample(of, dice.randint(least, most))

    def match() -> dict[str, Any]:
        made: dict[str, Any] = {"sniHosts": some(ASKED, 3, 1)} if protocol == "TLS" else {}
        if subnets := some(SUBNETS, 2):
            made["destinationSubnets"] = subnets
        return made

    def rule() -> dict[str, Any]:
        blocks = [match() for _ in range(dice.randint(1, 2))]
        if protocol == "TCP" and dice.random() < 0.2:
            blocks = []
        return {"match": blocks, "route": [{"destination": {"host": dice.choice(SERVERS) + ".test"}}]}

    rules = [rule() for _ in range(dice.randint(0, 5))]
    entry = {
        "kind": "ServiceEntry",
        "spec": {
            "hosts": ["*.example"] if protocol == "TLS" else ["called.example"],
            "ports": [{"number": 7000, "name": "p", "protocol": protocol}],
            "resolution": "NONE",
        },
    }
    virtual = {
        "kind": "VirtualService",
        "spec": {"hosts": entry["spec"]["hosts"], protocol.lower(): rules},  # type: ignore[index]
    }
    listed = [entry, *([virtual] if rules else []), *map(_server, SERVERS)]
    return "---\n".join(
        yaml.safe_dump(
            {"apiVersion": "networking.istio.io/v1", "metadata": {"name": f"n{number}"}, **document}
        )
        for number, document in enumerate(listed)
    )


def _server(name: str) -> dict[str, Any]:
    ports = [{"number": 7000, "name": "tcp", "protocol": "TCP"}]
    spec = {"hosts": [f"{name}.test"], "ports": ports, "resolution": "STATIC"}
    return {"kind": "ServiceEntry", "spec": {**spec, "endpoints": [{"address": "127.0.0.1"}]}}


def compiled(text: str) -> Any:
    """The Listener that this library is sent."""
    read = documents_in(text, "in.yaml")
    assert [str(one) for one in read.problems if one.severity is Severity.ERROR] == []
    compiler = GraphCompiler(build_graph(read.documents), "1")
    asked = frozenset(["called.example:7000"])
    (found,) = [
        one for one in compiler.resources(Client(Flavour.MESHLIB), asked) if one.kind is Kind.LISTENER
    ]
    return found.message()


def for_envoy(message: Any, name: str) -> dict[str, Any]:
    """The same chains at a port of its own. The last chain, of HTTP, needs bytes that no probe sends."""
    made = {key: value for key, value in pb.to_dict(message).items() if key in KEPT}
    made["filter_chains"] = made["filter_chains"][1:]
    inspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    return made | {
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 0}},
        "listener_filters": [
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type": f"type.googleapis.com/{inspector}"},
            }
        ],
    }


def cluster(name: str, port: int) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def hello(name: str) -> bytes:
    """The first bytes of a client of TLS that asks for that name; of one that speaks something else."""
    if not name:
        return b"\0hello\n"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def reached(address: str, port: int, name: str) -> str:
    """Which server answers; empty: the connection is closed."""
    with socket.create_connection((address, port), timeout=10) as made:
        made.sendall(hello(name))
        try:
            return made.makefile("rb").readline().decode().strip()
        except ConnectionError:
            return ""


def ours(connections: Connections, address: str, name: str) -> str:
    chain = connections.find(address, name)
    if chain is None:
        return ""
    found = chain.pick(random.Random())
    return found.split("|")[3].removesuffix(".test") if "|" in found else found


def probes(dice: random.Random) -> Iterator[tuple[str, str]]:
    for _ in range(PROBES):
        yield dice.choice(ADDRESSES), dice.choice(NAMES)


async def test_connections_go_where_envoy_sends_them(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    messages = [compiled(case(dice, dice.choice(("TLS", "TCP")))) for _ in range(LISTENERS)]
    with ExitStack() as stack:
        called = ("PassthroughCluster", "outbound|7000||*.example", "outbound|7000||called.example")
        clusters = [cluster(name, stack.enter_context(named_tcp(name))) for name in called]
        clusters += [cluster(f"outbound|7000||{n}.test", stack.enter_context(named_tcp(n))) for n in SERVERS]
        listeners = [for_envoy(message, f"l{number}") for number, message in enumerate(messages)]
        static = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        seen: Counter[str] = Counter()
        async with run_envoy(static, tmp_path) as running:
            for number, message in enumerate(messages):
                known = decode_connections(message)
                assert known is not None
                for address, name in probes(dice):
                    theirs = reached(address, running.listeners[f"l{number}"], name)
                    theirs = theirs.split("|")[-1]
                    mine = ours(known, address, name)
                    assert mine == theirs, (SEED, number, address, name, json.dumps(pb.to_dict(message)))
                    seen[mine] += 1
        assert set(SERVERS) <= set(seen), seen


HASHED = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s}}
spec:
  hosts: [s.test]
  ports: [{{number: 7000, name: p, protocol: TCP}}]
  resolution: STATIC
  endpoints: {endpoints}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s}}
spec:
  host: s.test
  trafficPolicy: {{loadBalancer: {{consistentHash: {{useSourceIp: true, {table}}}}}}}
"""


@pytest.mark.parametrize("table", ["ringHash: {minimumRingSize: 1024}", "maglev: {tableSize: 1009}"])
async def test_a_caller_has_the_endpoint_that_envoy_finds_for_its_address(table: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(named_tcp(name)) for name in SERVERS]
        listed = [{"address": "127.0.0.1", "ports": {"p": port}} for port in ports]
        text = HASHED.format(endpoints=json.dumps(listed), table=table)
        (tmp_path / "mesh.yaml").write_text(text)
        compiler = GraphCompiler(build_graph(documents_in(text, "in.yaml").documents), "1")
        made = {
            one.kind: one.message()
            for one in compiler.resources(Client(Flavour.MESHLIB), frozenset(["s.test:7000"]))
        }
        static = pb.to_dict(made[Kind.CLUSTER]) | {"type": "STATIC"}
        del static["eds_cluster_config"]
        static["load_assignment"] = pb.to_dict(made[Kind.ENDPOINTS])
        there = for_envoy(made[Kind.LISTENER], "l") | {"listener_filters": []}
        there["filter_chains"] = pb.to_dict(made[Kind.LISTENER])["filter_chains"][1:]
        config = {"static_resources": {"listeners": [there], "clusters": [static]}}
        seen = set()
        async with run_envoy(config, tmp_path) as running:
            for number in range(1, 13):
                address = f"127.0.0.{number}"
                with socket.create_connection(("127.0.0.1", running.listeners["l"]), 10, (address, 0)) as one:
                    theirs = one.makefile("rb").readline()
                with (
                    meshlib.connect(tmp_path, address=address) as mesh,
                    meshlib.create_connection(("s.test", 7000), 10, mesh=mesh) as one,
                ):
                    assert one.makefile("rb").readline() == theirs, address
                seen.add(theirs)
        assert len(seen) > 2


MESH = """
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{selector: {{app: db}}, ports: [{{name: tcp, port: {port}}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: v1}}
spec: {{address: 127.0.0.1, ports: {{tcp: {v1}}}, labels: {{app: db, version: v1}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: v2}}
spec: {{address: 127.0.0.1, ports: {{tcp: {v2}}}, labels: {{app: db, version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: db}}
spec:
  host: db
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: db}}
spec:
  hosts: [db]
  tcp:
  - route:
    - {{destination: {{host: db, subset: v1}}, weight: 80}}
    - {{destination: {{host: db, subset: v2}}, weight: 20}}
"""
SAMPLE = 200


def test_an_envoy_and_this_library_share_by_weight_alike(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        ports = {v: stack.enter_context(named_tcp(v)) for v in ("v1", "v2")}
        (tmp_path / "mesh.yaml").write_text(MESH.format(port=port, **ports))
        served = stack.enter_context(control(tmp_path))
        stack.enter_context(envoy(served.address, delta=True))
        mesh = stack.enter_context(meshlib.connect(served.address, allow_plaintext=True, state_dir=""))

        def by_envoy() -> str:
            with socket.create_connection(("127.0.0.1", port), 10) as made:
                return made.makefile("rb").readline().decode().strip()

        def by_library() -> str:
            with meshlib.create_connection(("db", port), 10, mesh=mesh) as made:
                return made.makefile("rb").readline().decode().strip()

        wait_until(lambda: listens(port), 20, "Envoy's listener")
        wait_until(lambda: bool(by_envoy()), 20, "Envoy's cluster")
        for ask in (by_envoy, by_library):
            seen = Counter(ask() for _ in range(SAMPLE))
            assert set(seen) == {"v1", "v2"}
            # Five standard deviations to either side.
            assert abs(seen["v2"] - SAMPLE * 0.2) < 5 * (SAMPLE * 0.2 * 0.8) ** 0.5
        assert served.refusals() == []


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True
