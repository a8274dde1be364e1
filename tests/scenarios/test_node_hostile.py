"""What a workload behind a node, or a stranger, can do to its neighbours, to itself and to the node."""

import contextlib
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.commands import wait_until
from support.namespaces import Pod, pod
from support.node_mesh import (
    MAX_CONNECTIONS,
    Node,
    application,
    ask,
    greeting,
    lookup,
    node,
    registered,
    talk,
    tunnel,
    tunnels,
)
from support.secure_mesh import SecureMesh, secure_mesh

from meshlib.control.compile import tunnelled

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, clusterIP: 10.96.0.7, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web2}
spec: {selector: {app: web2}, clusterIP: 10.96.0.8, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  selector: {app: web2}
  clusterIP: 10.96.0.9
  ports: [{name: tcp, port: 5432}, {name: tcp-deaf, port: 7000}]
"""
SECONDS = 1.0
"""For a handshake, in place of fifteen."""
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tunnelled, "HANDSHAKE_SECONDS", SECONDS)
        with secure_mesh(tmp_path_factory.mktemp("mesh"), SERVICES) as made:
            yield made


@pytest.fixture(scope="module")
def one(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm1", "--skip-deprecated-logs") as made:
        yield made


@pytest.fixture(scope="module")
def ratings(mesh: SecureMesh, one: Node) -> Iterator[Pod]:
    with pod() as made, application("ratings", made, 9080), registered(mesh, "vm1", "ratings", made):
        wait_until(lambda: "ratings/inbound" in one.get("/listeners"), 20, "its listeners")
        yield made


@pytest.fixture(scope="module")
def web2(mesh: SecureMesh, one: Node) -> Iterator[Pod]:
    """On the same node as its neighbour."""
    ports = (("http", 9080), ("tcp", 5432), ("tcp-deaf", 7000))
    with (
        pod() as made,
        application("web2", made, 9080),
        greeting(made, 5432),
        made.listen(7000),
        registered(mesh, "vm1", "web2", made, ports=ports),
    ):
        wait_until(lambda: "web2/inbound" in one.get("/listeners"), 20, "its listeners")
        yield made


WEB2, DB, DEAF = ("10.96.0.8", 9080), ("10.96.0.9", 5432), ("10.96.0.9", 7000)


# Ways around


def test_a_tunnel_leads_to_no_port_of_the_envoy(mesh: SecureMesh, web2: Pod) -> None:
    """In a tunnel to 15008 there could be another one, whose caller has an address within the namespace."""
    for port, status in ((15001, "404"), (15006, "404"), (15008, "404"), (15053, "503"), (5432, "200")):
        assert tunnel(mesh, web2.address, "caller", "CONNECT", f"{web2.address}:{port}") == status, port


@pytest.mark.parametrize("port", [9080, 5432, 8123])
def test_who_rules_in_a_namespace_does_not_reach_the_loopback_of_the_node(ratings: Pod, port: int) -> None:
    rules = f"""
    table ip own {{
      chain output {{
        type nat hook output priority -110;
        ip daddr 127.9.8.7 tcp dport {port} redirect to :15001
      }}
    }}
    """
    asked = b"GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n"
    nft = ["ip", "netns", "exec", ratings.name, "nft"]
    with application("node", None, port, "127.9.8.7"):
        subprocess.run([*nft, "-f", "-"], input=rules.encode(), check=True, capture_output=True)
        try:
            with contextlib.suppress(ConnectionError), ratings.connect("127.9.8.7", port) as made:
                made.sendall(asked)
                assert made.recv(100) == b""
        finally:
            subprocess.run([*nft, "delete", "table", "ip", "own"], check=True)


# HTTP/1.0


def _old(pod: Pod, address: str, port: int, host: str) -> bytes:
    with pod.connect(address, port) as made:
        made.sendall(f"GET / HTTP/1.0\r\n{host}\r\n".encode())
        found = b""
        while more := made.recv(65536):
            found += more
    return found


def test_http_1_0_is_spoken_both_ways(mesh: SecureMesh, ratings: Pod, web2: Pod) -> None:
    answer = _old(ratings, *WEB2, "host: web2:9080\r\n")
    assert (b" 200 " in answer, b'"app": "web2"' in answer) == (True, True), answer
    with socket.create_connection((web2.address, 9080), 10) as made:
        made.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: made.recv(65536), b""))
    # Who names no host means the one that was called.
    assert f'"host": "{web2.address}:9080"'.encode() in answer


def test_http_1_0_without_a_host_goes_where_it_was_going(ratings: Pod, web2: Pod) -> None:
    assert b'"app": "web2"' in _old(ratings, web2.address, 9080, "")


# Names


def test_a_name_may_end_in_a_digit(ratings: Pod) -> None:
    assert lookup(ratings, "web2") == ["10.96.0.8"]


# Strangers


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half-a-hello"])
def test_who_does_not_shake_hands_is_not_waited_for(web2: Pod, said: bytes) -> None:
    with socket.create_connection((web2.address, 15008), 10) as made:
        made.sendall(said)
        made.settimeout(SECONDS + 5)
        with contextlib.suppress(ConnectionResetError):
            assert made.recv(100) == b""


# Neighbours


def test_of_one_workload_there_are_so_many_connections(one: Node, ratings: Pod, web2: Pod) -> None:
    with contextlib.ExitStack() as held:
        many = [held.enter_context(ratings.connect(*DB)) for _ in range(MAX_CONNECTIONS + 10)]

        def ended() -> int:
            ready, _, _ = select.select(many, [], [], 0)
            return sum(_is_over(each) for each in ready)

        wait_until(lambda: ended() == 10, 20, "the end of those that are too many")
        assert one.stat("listener.127.0.0.1_15001.downstream_cx_overflow") == 10
        # Its neighbour has all of its own.
        assert talk(web2, *DB) == b"hello x"
    wait_until(lambda: talk(ratings, *DB) == b"hello x", 20, "its turn again")


def _is_over(made: socket.socket) -> bool:
    try:
        return made.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:
        return True


def test_of_one_workload_there_are_so_many_tunnels(mesh: SecureMesh, web2: Pod) -> None:
    def more() -> contextlib.AbstractContextManager[list[str]]:
        return tunnels(mesh, web2.address, "caller", f"{web2.address}:5432", 80)

    with more() as first, more() as second, more() as third:
        assert first == ["200"] * 80
        # A connection may always have one.
        found = (*first, *second, *third)
        assert MAX_CONNECTIONS <= found.count("200") <= MAX_CONNECTIONS + 3
        # As many wait, and whoever comes then is refused.
        assert abs(found.count("503") - (240 - 2 * MAX_CONNECTIONS)) <= 3


def test_what_nobody_reads_is_bounded(one: Node, ratings: Pod, web2: Pod) -> None:
    """By HBONE and both its ends in one Envoy. Envoy's defaults hold 40 MiB of each connection."""
    count, data = 8, b"x" * MIB
    before = _memory(one)
    with contextlib.ExitStack() as held:
        many = [held.enter_context(ratings.connect(*DEAF)) for _ in range(count)]
        for each in many:
            each.setblocking(False)
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.5:
            for each in select.select([], many, [], 0.1)[1]:
                each.send(data)
                quiet = time.monotonic()
        assert (_memory(one) - before) / count < 8 * MIB
        assert ask(web2, *WEB2, "web2:9080").status == 200


def _memory(one: Node) -> int:
    return int(json.loads(one.get("/memory"))["allocated"])
