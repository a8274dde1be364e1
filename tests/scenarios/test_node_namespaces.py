"""Namespaces of pods that are made anew, go, or lose their rules, under `meshlib node`: closed at once, in
the mesh again within a second or two, and nobody is sent there meanwhile. Everything STRICT. Needs root.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.commands import wait_until
from support.machines import Machine, Pod, Started, Underlay, pod, system, underlay
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib

MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: listed}
spec: {selector: {app: listed}, ports: [{name: http, port: 9080}]}
"""
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "6"); self.end_headers()
        self.wfile.write(b"listed")
    def log_message(self, *_): pass
print("listens", flush=True)
http.server.ThreadingHTTPServer(("", 9080), Handler).serve_forever()
"""
DRAIN = 30.0
"""Longer than any of this takes: what the Envoy had of a namespace that is gone is still draining."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Underlay]:
    with underlay(tmp_path_factory.mktemp("net")) as made:
        yield made


@pytest.fixture(scope="module")
def mesh(net: Underlay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), MESH, address=f"{net.address}:0") as made:
        yield made


@pytest.fixture(scope="module")
def machine(net: Underlay) -> Machine:
    return net.machine("vm1")


@pytest.fixture(scope="module")
def listed(machine: Machine) -> Iterator[Pod]:
    with pod(machine) as made:
        yield made


@pytest.fixture(scope="module")
def node(mesh: SecureMesh, machine: Machine, listed: Pod) -> Iterator[Started]:
    write(machine, listed)
    made = machine.node(mesh, "--workloads", str(machine.folder / "list.yaml"), "--drain", f"{DRAIN:g}")
    yield made
    made.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def client(mesh: SecureMesh) -> Iterator[meshlib.Client]:
    with mesh.joined("productpage") as joined, meshlib.Client(mesh=joined) as made:
        yield made


@pytest.fixture
def serving(machine: Machine, node: Started, listed: Pod, client: meshlib.Client) -> Iterator["Serving"]:
    made = Serving(machine, listed, client)
    try:
        made.start()
        made.settles()
        yield made
    finally:
        made.stop()


class Serving:
    """The application in the pod, and who calls it."""

    def __init__(self, machine: Machine, pod: Pod, client: meshlib.Client) -> None:
        self.machine, self.pod, self.client = machine, pod, client
        self._server: Started | None = None

    def start(self) -> None:
        command = ["nsenter", f"--net={self.pod.path}", sys.executable, "-c", SERVER]
        self._server = self.machine.start("listed", *command)
        self._server.wait_for("listens")

    def stop(self) -> None:
        if self._server is not None:
            self._server.process.kill()
            self._server.process.wait()
        self._server = None

    def remake(self) -> None:
        """As a runtime does that keeps the path."""
        self.stop()
        self.pod.remove()
        self.pod.make()
        self.start()

    @property
    def why(self) -> str:
        return str(self.machine.workloads().get("listed-1", {}).get("why", "it is not there"))

    def answers(self) -> int:
        """The status that a caller of the mesh gets; 0: none, in time."""
        with contextlib.suppress(httpx.TransportError):
            return int(self.client.get("http://listed:9080/", timeout=1).status_code)
        return 0

    def settles(self) -> None:
        """It is ready; callers get an answer; so does what it calls itself, by name."""
        wait_until(lambda: self.why == "", 30, f"the workload: {self.why}")
        wait_until(lambda: self.answers() == 200, 30, "an answer")
        command = ["curl", "-sS", "--max-time", "5", "http://listed:9080/"]
        wait_until(lambda: quiet(self.machine, self.pod, *command) == "listed", 20, "an answer by name")

    def closes(self) -> None:
        """Plain text is refused, soon and from then on."""
        wait_until(lambda: not plain(self.pod), 5, "the rules")
        for _ in range(20):
            assert not plain(self.pod)
            time.sleep(0.02)


def quiet(machine: Machine, pod: Pod, *command: str) -> str:
    try:
        return machine.inside(pod.path, *command)
    except subprocess.CalledProcessError:
        return ""


def plain(pod: Pod) -> bool:
    """Whether a stranger is answered."""
    try:
        return httpx.get(f"http://{pod.address}:9080/", trust_env=False, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def write(machine: Machine, *pods: Pod) -> None:
    found: list[dict[str, Any]] = [
        {"name": "listed-1", "service": "listed", "ports": {"http": 9080}, "netns": one.path} for one in pods
    ]
    new = machine.folder / "list.new"
    new.write_text(json.dumps(found))
    new.replace(machine.folder / "list.yaml")


def test_a_namespace_made_anew_at_the_same_path_is_closed_and_joins(serving: Serving, node: Started) -> None:
    serving.remake()
    serving.closes()
    serving.settles()
    assert "; it is closed anew, leaves and joins" in node.said


def test_rules_that_vanish_are_put_anew_and_that_is_said(serving: Serving, node: Started) -> None:
    system("ip", "netns", "exec", serving.pod.name, "nft", "delete", "table", "ip", "meshlib")
    serving.closes()
    node.wait_for(f"workload listed-1: somebody changed its rules in {serving.pod.path}; it is closed anew")
    serving.settles()


def test_nobody_is_sent_to_a_namespace_that_is_gone(serving: Serving) -> None:
    serving.stop()
    serving.pod.remove()
    wait_until(lambda: "is not a network namespace" in serving.why, 5, "the end")
    wait_until(lambda: serving.answers() == 503, 5, "the end of its endpoint")
    serving.pod.make()
    serving.start()
    serving.closes()
    serving.settles()


def test_one_that_is_made_anew_while_it_is_not_in_the_list_has_a_name_server(
    serving: Serving, machine: Machine
) -> None:
    write(machine)
    wait_until(lambda: plain(serving.pod), 20, "the end of the rules")
    serving.remake()
    write(machine, serving.pod)
    serving.closes()
    serving.settles()
