"""Workloads behind nodes: two real Envoys, namespaces, and peers in this process, everything STRICT."""

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO

import pytest
from support.commands import wait_until
from support.namespaces import Pod, pod
from support.node_mesh import (
    PARTING,
    Node,
    application,
    ask,
    greeting,
    lookup,
    node,
    registered,
    talk,
    tunnel,
)
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib
from meshlib.control.registration import Place

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, clusterIP: 10.96.0.7, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, clusterIP: 10.96.0.8, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: details}, ports: [{name: tcp, port: 5432}, {name: any, port: 7000}]}
"""
ADDED = """
apiVersion: v1
kind: Service
metadata: {name: added}
spec: {selector: {app: added}, ports: [{name: tls, port: 8443}, {name: a, port: 8444}, {name: tcp, port: 99}]}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details}
spec:
  selector: {matchLabels: {app: details}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/ratings]}}]
    to: [{operation: {methods: [GET], ports: ["9080"]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/WHO]}}]
    to: [{operation: {ports: ["5432"]}}]
"""
DENIED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  selector: {matchLabels: {app: details}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/ratings]}}]}]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), STRICT, SERVICES) as made:
        yield made


@pytest.fixture(scope="module")
def one(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm1", "--skip-deprecated-logs", "--drain-time-s", "1") as made:
        yield made


@pytest.fixture(scope="module")
def two(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm2", "--skip-deprecated-logs", "--drain-time-s", "1") as made:
        yield made


@pytest.fixture(scope="module")
def ratings(mesh: SecureMesh, one: Node) -> Iterator[Pod]:
    with pod() as made, application("ratings", made, 9080), registered(mesh, "vm1", "ratings", made):
        wait_until(lambda: "ratings/inbound" in one.get("/listeners"), 20, "its listeners")
        yield made


@pytest.fixture(scope="module")
def details(mesh: SecureMesh, two: Node) -> Iterator[Pod]:
    ports = (("http", 9080), ("tcp", 5432), ("any", 7000))
    with (
        pod() as made,
        application("details", made, 9080),
        application("any", made, 7000),
        application("undeclared", made, 9999),
        greeting(made, 5432),
        registered(mesh, "vm2", "details", made, ports=ports),
    ):
        wait_until(lambda: "details/inbound" in two.get("/listeners"), 20, "its listeners")
        yield made


ACCOUNT = "spiffe://cluster.local/ns/default/sa/"
PYTHON_SERVER = ("10.96.0.9", 9080, "reviews:9080")
DETAILS = ("10.96.0.8", 9080, "details:9080")


def test_a_python_client_reaches_it(mesh: SecureMesh, ratings: Pod) -> None:
    with mesh.joined("caller") as joined, meshlib.Client(mesh=joined) as client:
        answer = client.get("http://ratings:9080/x")
    assert answer.status_code == 200
    told = answer.json()
    assert f"URI={ACCOUNT}caller" in told["headers"]["x-forwarded-client-cert"]
    assert (told["app"], told["from"], told["path"]) == ("ratings", "127.0.0.6", "/x")


def test_it_reaches_a_python_server(mesh: SecureMesh, ratings: Pod) -> None:
    with mesh.served():
        wait_until(lambda: ask(ratings, *PYTHON_SERVER).status == 200, 20, "the server")
        assert ask(ratings, *PYTHON_SERVER).told["principal"] == f"{ACCOUNT}ratings"


def test_from_node_to_node_it_goes_by_hbone(ratings: Pod, details: Pod, one: Node) -> None:
    answer = ask(ratings, *DETAILS, path="/d", x_forwarded_client_cert="By=me")
    assert (answer.status, answer.told["app"], answer.told["path"]) == (200, "details", "/d")
    said = answer.told["headers"]["x-forwarded-client-cert"]
    assert re.fullmatch(f'By={ACCOUNT}details;Hash=[0-9a-f]{{64}};Subject="";URI={ACCOUNT}ratings', said), (
        said
    )
    assert one.stat("cluster.ratings/hbone.upstream_rq_total") == 1
    assert ask(ratings, *DETAILS).status == 200
    # Of one caller and one workload the tunnels share a connection.
    assert one.stat("cluster.ratings/hbone.upstream_cx_total") == 1


def test_plain_text_is_refused(ratings: Pod) -> None:
    with socket.create_connection((ratings.address, 9080), 5) as made:
        made.sendall(b"GET / HTTP/1.1\r\nhost: ratings\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert made.recv(100) == b""


# Names


def test_names_of_the_mesh_lead_to_its_services(ratings: Pod, details: Pod) -> None:
    for name in ("details", "details.default", "details.default.svc", "details.default.svc.cluster.local"):
        assert lookup(ratings, name) == ["10.96.0.8"]
    # Nothing is missing: where a known name has no address of a kind musl's resolver takes it for unknown.
    assert lookup(ratings, "details", kind=28) == ["::ffff:10.96.0.8"]
    (given,) = lookup(ratings, "db")
    assert given.startswith("240.240.")
    assert lookup(ratings, "localhost") == ["127.0.0.1"]
    with pytest.raises(LookupError):
        lookup(ratings, "nobody.invalid")


def test_a_program_finds_a_service_by_name(ratings: Pod, details: Pod) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://details:9080/by-name', timeout=20).read())"
    with ratings.resolving():
        command = ["ip", "netns", "exec", ratings.name, sys.executable, "-S", "-c", script]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "/by-name" in found.stdout, found.stderr


# Connections


def test_connections_and_what_is_found_out(ratings: Pod, details: Pod) -> None:
    (address,) = lookup(ratings, "db")
    assert talk(ratings, address, 5432) == b"hello x"
    assert ask(ratings, address, 7000, "db:7000").told["app"] == "any"


def test_what_a_server_says_last_arrives(ratings: Pod, details: Pod) -> None:
    (address,) = lookup(ratings, "db")
    for _ in range(5):
        with ratings.connect(address, 5432) as made:
            made.sendall(b"q")
            found = bytearray()
            while more := made.recv(65536):
                found += more
        assert found == b"hello " + b"y" * PARTING


def _status(made: socket.socket, lines: BinaryIO, host: str = "details:9080") -> bytes:
    """Of one request more on a connection; empty: it is over."""
    made.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    first, size = lines.readline(), 0
    while line := lines.readline().strip().lower():
        if line.startswith(b"content-length:"):
            size = int(line.partition(b":")[2])
    lines.read(size)
    return b"".join(first.split()[1:2])


def test_a_service_that_comes_cuts_no_connection(
    mesh: SecureMesh, ratings: Pod, details: Pod, one: Node
) -> None:
    (address,) = lookup(ratings, "db")
    with (
        ratings.connect(address, 5432) as first,
        ratings.connect(address, 7000) as second,
        second.makefile("rb") as lines,
    ):

        def talked() -> bool:
            first.sendall(b"x")
            return first.recv(100) == b"x" and _status(second, lines, "db:7000") == b"200"

        def drained() -> bool:
            kinds = ("listeners", "filter_chains")
            return not any(one.stat(f"listener_manager.total_{kind}_draining") for kind in kinds)

        assert first.recv(100) == b"hello "
        assert talked()
        mesh.edit(STRICT, SERVICES, ADDED)
        wait_until(lambda: "ratings/inspected|8443" in one.get("/listeners"), 20, "its listener")
        wait_until(drained, 20, "the end of what was before")
        assert talked()
    mesh.edit(STRICT, SERVICES)


def test_what_is_not_declared_is_under_the_same_mode(ratings: Pod, details: Pod) -> None:
    # The caller knows no service there: it goes in plain text, which a STRICT workload does not take.
    for port in (9999, 15006, 15001):
        with pytest.raises(OSError):
            ask(ratings, details.address, port, "details")
    assert ask(ratings, details.address, 9080, "nobody.example").status == 503


# Policies, on both ways in


@pytest.fixture
def ruled(mesh: SecureMesh, ratings: Pod, details: Pod) -> Iterator[None]:
    mesh.edit(STRICT, SERVICES, POLICY.replace("WHO", "ratings"))
    wait_until(lambda: ask(ratings, *DETAILS, method="POST").status == 403, 20, "the policy")
    yield
    mesh.edit(STRICT, SERVICES)
    wait_until(lambda: ask(ratings, *DETAILS, method="POST").status == 200, 20, "no policy")


@pytest.mark.usefixtures("ruled")
def test_requests_are_judged_behind_a_tunnel(ratings: Pod, details: Pod) -> None:
    assert ask(ratings, *DETAILS).status == 200
    (address,) = lookup(ratings, "db")
    # Rules for requests at one port are none for another.
    assert ask(ratings, address, 7000, "db:7000").status == 403


@pytest.mark.usefixtures("ruled")
def test_requests_are_judged_at_the_port_itself(mesh: SecureMesh, details: Pod) -> None:
    for account, status in (("ratings", 200), ("caller", 403)):
        with mesh.joined(account) as joined, meshlib.Client(mesh=joined) as client:
            assert client.get("http://details:9080/").status_code == status
            assert client.post("http://details:9080/").status_code == 403


def test_connections_are_judged(mesh: SecureMesh, ratings: Pod, details: Pod) -> None:
    (address,) = lookup(ratings, "db")
    mesh.edit(STRICT, SERVICES, POLICY.replace("WHO", "caller"))
    # A tunnel is refused: the server, which speaks first, has not heard of it.
    wait_until(lambda: talk(ratings, address, 5432) == b"", 20, "the policy")
    with mesh.joined("caller") as joined, meshlib.create_connection(("db", 5432), mesh=joined) as made:
        made.sendall(b"x")
        found = made.recv(100)
        while len(found) < 7 and (more := made.recv(100)):
            found += more
        assert found == b"hello x"
    mesh.edit(STRICT, SERVICES)
    wait_until(lambda: talk(ratings, address, 5432) == b"hello x", 20, "no policy")


def test_a_connection_ends_when_a_new_rule_holds_for_it(mesh: SecureMesh, ratings: Pod, details: Pod) -> None:
    (address,) = lookup(ratings, "db")
    with (
        mesh.joined("caller") as joined,
        ratings.connect(address, 5432) as through,
        meshlib.create_connection(("db", 5432), mesh=joined) as direct,
    ):
        for one in (through, direct):
            one.settimeout(20)
            one.sendall(b"x")
            assert one.recv(1) == b"h"
        mesh.edit(STRICT, SERVICES, _ruled("DENY", '{to: [{operation: {ports: ["5432"]}}]}'))
        for one in (through, direct):
            with contextlib.suppress(ConnectionResetError):
                while one.recv(100):
                    pass
    mesh.edit(STRICT, SERVICES)
    wait_until(lambda: talk(ratings, address, 5432) == b"hello x", 20, "no policy")


def _ruled(action: str, rule: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: by-address}}
spec: {{action: {action}, selector: {{matchLabels: {{app: details}}}}, rules: [{rule}]}}
"""


def test_rules_on_addresses_hold_on_both_ways_in(mesh: SecureMesh, ratings: Pod, details: Pod) -> None:
    def statuses(account: str) -> tuple[int, int, bytes]:
        with mesh.joined(account) as joined, meshlib.Client(mesh=joined) as client:
            direct = client.get("http://details:9080/").status_code
        (address,) = lookup(ratings, "db")
        return ask(ratings, *DETAILS).status, direct, talk(ratings, address, 5432)

    refused, taken = (403, 403, b""), (200, 200, b"hello x")
    # Who calls is the node, on the link to the workload.
    node_itself, other = f'["{details.host}/32"]', '["192.0.2.0/24"]'
    for action, rule, expected in (
        ("DENY", 'from: [{source: {ipBlocks: ["0.0.0.0/0"]}}]', refused),
        ("ALLOW", f"from: [{{source: {{ipBlocks: {node_itself}}}}}]", taken),
        ("DENY", f"when: [{{key: source.ip, values: {node_itself}}}]", refused),
        ("ALLOW", f"from: [{{source: {{notIpBlocks: {other}}}}}]", taken),
        ("ALLOW", f"from: [{{source: {{notIpBlocks: {node_itself}}}}}]", refused),
        ("DENY", f"when: [{{key: source.ip, notValues: {node_itself}}}]", taken),
        ("DENY", f"from: [{{source: {{remoteIpBlocks: {node_itself}}}}}]", refused),
        ("DENY", f"from: [{{source: {{ipBlocks: {other}}}}}]", taken),
    ):
        mesh.edit(STRICT, SERVICES, _ruled(action, "{" + rule + "}"))
        wait_until(lambda: statuses("caller") == expected, 20, f"{action} {rule}")  # noqa: B023 - it is over
    mesh.edit(STRICT, SERVICES)


def test_what_a_tunnel_says_of_its_caller_is_not_believed(mesh: SecureMesh, details: Pod) -> None:
    def status() -> str:
        authority = f"{details.address}:5432"
        return tunnel(mesh, details.address, "caller", "CONNECT", authority, x_forwarded_for="192.0.2.1")

    for block, expected in ((f"{details.host}/32", "403"), ("192.0.2.0/24", "200")):
        rule = f'{{from: [{{source: {{remoteIpBlocks: ["{block}"]}}}}]}}'
        mesh.edit(STRICT, SERVICES, _ruled("DENY", rule))
        wait_until(lambda: status() == expected, 20, block)  # noqa: B023 - it is over then
    mesh.edit(STRICT, SERVICES)


def test_a_policy_holds_for_the_next_request_on_a_connection(
    mesh: SecureMesh, ratings: Pod, details: Pod
) -> None:
    with ratings.connect(*DETAILS[:2]) as made, made.makefile("rb") as lines:
        assert _status(made, lines) == b"200"
        mesh.edit(STRICT, SERVICES, DENIED)
        wait_until(lambda: _status(made, lines) == b"403", 20, "the policy")
        mesh.edit(STRICT, SERVICES)
        wait_until(lambda: _status(made, lines) == b"200", 20, "no policy")


def test_modes(mesh: SecureMesh, details: Pod) -> None:
    def plainly() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((details.address, 9080), 5) as made:
            made.sendall(b"GET / HTTP/1.1\r\nhost: details\r\nx-forwarded-client-cert: By=me\r\n\r\n")
            return b'"app": "details"' in made.recv(4096)
        return False

    with mesh.joined("caller") as joined, meshlib.Client(mesh=joined) as client:
        for mode, plain in (("PERMISSIVE", True), ("DISABLE", True), ("STRICT", False)):
            mesh.edit(STRICT.replace("STRICT", mode), SERVICES)
            wait_until(lambda: plainly() is plain, 20, mode)  # noqa: B023 - it is over then

            def called() -> str:
                answer = client.get("http://details:9080/")
                assert answer.status_code == 200
                return str(answer.json()["headers"].get("x-forwarded-client-cert", ""))

            secured = mode != "DISABLE"
            wait_until(lambda: ("sa/caller" in called()) is secured, 20, mode)  # noqa: B023


def test_nothing_waits_for_an_envoy_that_a_workload_has_left(
    mesh: SecureMesh, one: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "meshlib.control.serve.push")
    with pod() as made:
        with registered(mesh, "vm1", "ratings", made, place=Place("leaver", str(made.path))):
            wait_until(lambda: "leaver/inbound" in one.get("/listeners"), 20, "its listeners")
        wait_until(lambda: "leaver" not in one.get("/listeners") + one.get("/clusters"), 20, "its end")
    assert [record.message for record in caplog.records] == []


# Hostile callers


def test_a_tunnel_leads_nowhere_else(mesh: SecureMesh, details: Pod) -> None:
    for method, authority, status in (
        ("CONNECT", f"{details.address}:9080", "200"),
        ("CONNECT", "127.0.0.1:9080", "404"),
        ("CONNECT", f"{details.host}:22", "404"),
        ("CONNECT", f"{details.address}.example:9080", "404"),
        # What Envoy would read as the port, and rules of ports would not.
        *(("CONNECT", f"{details.address}:{port}", "404") for port in ("09080", "+7000", "05432", "7000x")),
        *(("CONNECT", f"{details.address}:{port}", "404") for port in ("0", "65536", "99999", "")),
        ("CONNECT", details.address, "404"),
        ("GET", f"{details.address}:9080", "404"),
    ):
        assert tunnel(mesh, details.address, "caller", method, authority) == status, authority
    with pytest.raises(OSError):
        tunnel(mesh, details.address, "", "CONNECT", f"{details.address}:9080")


def test_listeners_lead_to_no_listener_of_their_own(mesh: SecureMesh, details: Pod) -> None:
    assert tunnel(mesh, details.address, "caller", "CONNECT", f"{details.address}:15006") == "404"
    with contextlib.suppress(OSError):
        assert talk(details, "127.0.0.1", 15001) == b""
