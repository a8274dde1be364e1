"""What workloads of `meshlib node` notice while the control service is gone, certificates are renewed, rules
change and Envoys are killed: two machines, one that calls all the time, and one that is called. Needs root.
"""

import base64
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import wait_until
from support.machines import Machine, Started, Underlay, underlay
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib
from meshlib.identity.pem import split_pem

MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, ports: [{name: http, port: 9080}, {name: tcp, port: 7000}]}
"""
DENIED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  selector: {matchLabels: {app: details}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/ratings]}}]
    to: [{operation: {ports: ["PORT"]}}]
"""
# Answers, and says at a port of TCP what it hears.
DETAILS = """
import http.server, socketserver, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "7"); self.end_headers()
        self.wfile.write(b"details")
    def log_message(self, *_): pass
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1000): self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer): daemon_threads = True
echo = Server(("", 7000), Echo)
threading.Thread(target=echo.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("", 9080), Handler).serve_forever()
"""
# Calls all the time: one connection a request, one that stays, a tunnel a byte, one tunnel that stays.
# A line says what became of each.
RATINGS = """
import http.client, socket, time
def request(made):
    made.request("GET", "/plainly")
    answer = made.getresponse()
    answer.read()
    return str(answer.status)
def echo(made):
    made.sendall(b"plainly")
    return "echo" if made.recv(100) == b"plainly" else "gone"
def http_new():
    made = http.client.HTTPConnection("details", 9080, timeout=20)
    try: return request(made)
    finally: made.close()
def tcp_new():
    with socket.create_connection(("details", 7000), 20) as made: return echo(made)
standing = {}
def http_kept():
    if "http" not in standing: standing["http"] = http.client.HTTPConnection("details", 9080, timeout=20)
    return request(standing["http"])
def tcp_kept():
    if "tcp" not in standing: standing["tcp"] = socket.create_connection(("details", 7000), 20)
    return echo(standing["tcp"])
while True:
    for call in (http_new, http_kept, tcp_new, tcp_kept):
        try: said = call()
        except OSError as error: said = "failed"
        except http.client.HTTPException: said = "failed"
        name = call.__name__
        if said in ("failed", "gone") and name.endswith("_kept"): standing.pop(name[:-5], None)
        print(name, said, flush=True)
    time.sleep(0.01)
"""
PATIENT = ("--drain", "5")
"""For how long a connection may stay whose listener changed."""
GOOD = {"http_new": "200", "http_kept": "200", "tcp_new": "echo", "tcp_kept": "echo"}


@dataclass
class Caller:
    """What became of its calls."""

    program: Started

    def lines(self) -> list[list[str]]:
        return [words for line in self.program.said.splitlines() if len(words := line.split()) == 2]

    def since(self, count: int) -> dict[str, set[str]]:
        """What each kind of call got, after so many."""
        found: dict[str, set[str]] = {}
        for name, said in self.lines()[count:]:
            found.setdefault(name, set()).add(said)
        return found

    def lost_since(self, count: int) -> bool:
        """Whether the connection of TCP that stays has ended, by a reset or orderly, after so many."""
        return bool({"failed", "gone"} & self.since(count).get("tcp_kept", set()))

    def settles(self, **other: str) -> None:
        """Waits until calls of each kind get what is good, or this."""
        wanted = {name: {said} for name, said in (GOOD | other).items()}
        wait_until(lambda: self._last(16) == wanted, 60, f"{wanted}, not {self._last(16)}")

    def _last(self, count: int) -> dict[str, set[str]]:
        return self.since(max(0, len(self.lines()) - count))

    def more(self, count: int = 60) -> None:
        """Waits for so many more calls."""
        least = len(self.lines()) + count
        wait_until(lambda: len(self.lines()) >= least, 60, "calls")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Underlay]:
    with underlay(tmp_path_factory.mktemp("net")) as made:
        yield made


@pytest.fixture(scope="module")
def mesh(net: Underlay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with secure_mesh(folder, MESH, max_ttl_s=3600, address=f"{net.address}:0") as made:
        yield made


@pytest.fixture(scope="module")
def two(net: Underlay) -> Machine:
    return net.machine("vm2")


@pytest.fixture(scope="module")
def nodes(net: Underlay, mesh: SecureMesh, two: Machine) -> list[Started]:
    """Both renew certificates every two seconds."""
    return [started(net.machine("vm1"), mesh), started(two, mesh)]


def started(machine: Machine, mesh: SecureMesh) -> Started:
    return machine.node(mesh, *PATIENT, renewing=0.0006)


@pytest.fixture(scope="module")
def caller(net: Underlay, nodes: list[Started], two: Machine) -> Caller:
    two.run("details", sys.executable, "-c", DETAILS, options=["--port", "tcp=7000"])
    made = Caller(net.machines[1].run("ratings", sys.executable, "-c", RATINGS))
    made.settles()
    return made


def shown(machine: Machine, service: str = "details", root: str = "") -> bytes:
    """The certificate that a workload shows to whoever connects now, and trusts this root alone, if any.

    OSError: it shows none that is trusted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if root:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=root)
    context.set_alpn_protocols(["istio-peer-exchange", "istio"])
    address = machine.workloads()[service]["address"]
    with socket.create_connection((address, 9080), 10) as plain, context.wrap_socket(plain) as made:
        return made.getpeercert(binary_form=True) or b""


def test_a_rule_holds_for_the_next_tunnel_and_ends_those_that_stand_later(
    caller: Caller, mesh: SecureMesh
) -> None:
    before = len(caller.lines())
    mesh.edit(MESH, DENIED.replace("PORT", "7000"))
    wait_until(lambda: bool(caller.since(before).get("tcp_kept", set()) - {"echo"}), 60, "its end")
    lines = caller.lines()[before:]
    refused = next(place for place, (name, said) in enumerate(lines) if name == "tcp_new" and said != "echo")
    assert ["tcp_kept", "echo"] in lines[refused:]
    mesh.edit(MESH)
    caller.settles()
    seen = caller.since(before)
    assert seen["http_new"] == seen["http_kept"] == {"200"}


def test_certificates_are_renewed_under_load(two: Machine, caller: Caller, mesh: SecureMesh) -> None:
    before, found = len(caller.lines()), set[bytes]()

    def renewed() -> bool:
        with suppress(OSError):
            found.add(shown(two))
        return len(found) >= 3

    with mesh.joined("productpage") as joined:
        wait_until(renewed, 60, "certificates")
        caller.more()
        # And one that comes now trusts them as well.
        with meshlib.Client(mesh=joined) as client:
            assert client.get("http://details:9080/").text == "details"
    assert caller.since(before) == {name: {said} for name, said in GOOD.items()}


def test_the_root_is_replaced_under_load(
    net: Underlay, two: Machine, caller: Caller, mesh: SecureMesh
) -> None:
    """Each step lasts until everybody did what it is for."""
    one, before = net.machines[-1], len(caller.lines())
    both = ((one, "ratings"), (two, "details"))
    (old,) = split_pem(mesh.authority.roots_pem)
    mesh.rotate_root(overlap_s=4000, keep_s=4000)
    for machine, _ in both:
        wait_until(lambda: trusted(machine) == {2}, 60, "the new root")  # noqa: B023
    caller.more()
    (new,) = set(split_pem(mesh.authority.roots_pem)) - {old}
    mesh.turn()

    def by_the_new() -> bool:
        with suppress(OSError):
            return all(shown(machine, service, new) for machine, service in both)
        return False

    wait_until(by_the_new, 60, "certificates of the new root")
    caller.more()
    mesh.turn(settled=True)
    for machine, _ in both:
        wait_until(lambda: trusted(machine) == {1}, 60, "the new root alone")  # noqa: B023
    caller.more()
    assert mesh.authority.roots_pem == new
    assert caller.since(before) == {name: {said} for name, said in GOOD.items()}


def test_the_control_service_is_gone_for_a_while(two: Machine, caller: Caller, mesh: SecureMesh) -> None:
    before = len(caller.lines())
    with mesh.down():
        caller.more(200)
    caller.more()
    assert caller.since(before) == {name: {said} for name, said in GOOD.items()}
    # The nodes and their workloads are back when what is edited holds.
    mesh.edit(MESH, DENIED.replace("PORT", "9080"))
    caller.settles(http_new="403", http_kept="403")
    mesh.edit(MESH)
    caller.settles()


def test_a_killed_envoy_and_a_killed_agent_mean_no_traffic_and_no_plain_text(
    net: Underlay, nodes: list[Started], two: Machine, caller: Caller, mesh: SecureMesh
) -> None:
    with net.seen() as file:
        for node in nodes:
            before = len(caller.lines())
            (envoy,) = envoys(node)
            os.kill(envoy, signal.SIGKILL)
            wait_until(lambda: caller.lost_since(before), 60, "its end")  # noqa: B023
            caller.settles()
        before = len(caller.lines())
        nodes[1].end(signal.SIGKILL)
        wait_until(lambda: bool(caller.since(before).get("http_new", set()) - {"200"}), 60, "its end")
        nodes[1] = started(two, mesh)
        caller.settles()
    assert b"plainly" not in file.read_bytes()


def test_without_a_control_service_envoys_and_agents_come_back_with_what_was_last_good(
    net: Underlay, nodes: list[Started], two: Machine, caller: Caller, mesh: SecureMesh
) -> None:
    denied = {"http_new": "403", "http_kept": "403"}
    mesh.edit(MESH, DENIED.replace("PORT", "9080"))
    caller.settles(**denied)
    wait_until(
        lambda: any(b"policy[nobody]" in body for body in kept(two).values()),
        60,
        "the last good configuration",
    )
    with net.seen() as file, mesh.down():
        for node in nodes:
            before = len(caller.lines())
            (envoy,) = envoys(node)
            os.kill(envoy, signal.SIGKILL)
            wait_until(lambda: caller.lost_since(before), 60, "its end")  # noqa: B023
            caller.settles(**denied)
        for orderly in (True, False):
            before = len(caller.lines())
            if orderly:
                nodes[1].process.send_signal(signal.SIGTERM)
                nodes[1].wait_for("draining")
            nodes[1].end(signal.SIGTERM if orderly else signal.SIGKILL)
            wait_until(lambda: caller.lost_since(before), 60, "its end")  # noqa: B023
            nodes[1] = started(two, mesh)
            caller.settles(**denied)
        assert two.workloads()["details"]["why"] == (
            "the control service can't be reached; it has the last good configuration"
        )
    before = len(caller.lines())
    mesh.edit(MESH)
    caller.settles()
    seen = caller.since(before)
    assert seen["tcp_new"] == seen["tcp_kept"] == {"echo"}
    wait_until(lambda: two.workloads()["details"]["why"] == "", 60, "it")
    assert b"plainly" not in file.read_bytes()


def kept(machine: Machine) -> dict[str, bytes]:
    """What a node keeps of its workloads' configuration, by name."""
    found = {}
    files = (machine.folder / "state" / "workloads").glob("*.mesh")
    # Of another fingerprint there is another one.
    for path in sorted(files, key=lambda one: one.stat().st_mtime):
        _, _, said = path.read_bytes().partition(b"\n")
        for _, name, _, body in json.loads(said)["resources"]:
            found[name] = base64.b64decode(body)
    return found


def trusted(machine: Machine) -> set[int]:
    """How many roots the node itself trusts, and its Envoy."""
    own = max((machine.folder / "state" / "identity").glob("*.json"), key=lambda one: one.stat().st_mtime)
    return {
        len(split_pem(json.loads(own.read_text())["roots"])),
        kept(machine).get("ROOTCA", b"").count(b"BEGIN CERTIFICATE"),
    }


def envoys(node: Started) -> list[int]:
    """The processes of its Envoy."""
    own = node.process.pid
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [int(one) for one in children if "envoy" in Path(f"/proc/{one}/comm").read_text()]
