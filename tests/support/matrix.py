"""Callers and servers of each kind, one mesh: Python in the process, and what is behind a node.

                     in the process                     behind a node
    callers          default/caller, shop/other         the same, pods of the node vm1
    servers          `reviews`, processes of their own  `details`, pods of vm2 (v1) and of vm1 (v2)

What is the same for both servers is written once: HOST, APP and PORT stand for what they are called.
"""

import contextlib
import itertools
import json
import socketserver
import time
import wsgiref.simple_server
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import wait_until
from support.namespaces import Pod, pod
from support.node_mesh import ask, node, registered, serving
from support.ports import free_port
from support.secure_mesh import SecureMesh, secure_mesh
from support.versioned import versioned

import meshlib
from meshlib.identity.spiffe import SpiffeId

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, clusterIP: 10.96.0.8, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
ACCOUNTS = {"caller": "default", "other": "shop"}
PYTHON, NODE = "python", "node"
PAIRS = [f"{one} to {other}" for one in (PYTHON, NODE) for other in (PYTHON, NODE)]
_IDS = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """Of one request. Status 0: there was none."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Way:
    """From a caller of one kind to a server of one."""

    send: Callable[[str, str, str, str, dict[str, str]], Answer]
    service: str
    heard: Path

    def ask(self, account: str = "caller", method: str = "GET", path: str = "/", **headers: str) -> Answer:
        """One request of an account."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        began = time.monotonic()
        found = self.send(account, f"{self.service}.default", method, path, spelled)
        return Answer(found.status, found.headers, found.told, time.monotonic() - began)

    def status(self, *asked: str, **headers: str) -> str:
        """Of an answer: the status, and whom the server took the caller for."""
        found = self.ask(*asked, **headers)
        who = found.told.get("caller") or ""
        return f"{found.status} {who.rpartition('/ns/')[2]}".strip()

    def version(self, **headers: str) -> str:
        """Of an answer: the status and the version."""
        found = self.ask(**headers)
        return f"{found.status} {found.told.get('version', '')}".strip()

    def number(self) -> str:
        """An `x-id` that no other request has."""
        return f"id{next(_IDS)}"

    def heard_by(self, number: str) -> list[str]:
        """Who heard of the requests of an `x-id`: `version host`, for each."""
        said = [line.split(" ") for line in self.heard.read_text().splitlines()]
        return sorted(f"{version} {host}" for version, each, host in said if each == number)


@dataclass
class Matrix:
    """The whole."""

    mesh: SecureMesh
    ways: dict[str, Way]
    ports: dict[str, int]
    plain: Callable[[str], Answer]
    """A request in plain text, of nobody, to the server of a service itself."""
    more: str = ""

    @contextlib.contextmanager
    def beside(self, documents: str) -> Iterator[None]:
        """These are there as well for the time of the block, once for all."""
        self.more = documents
        try:
            yield
        finally:
            self.more = ""
            self.edit("")

    def edit(self, documents: str) -> None:
        """These, for both servers, beside the services."""
        found = [SERVICES, *filter(None, [self.more])]
        for service, port in self.ports.items():
            own = documents.replace("HOST", f"{service}.default.svc.cluster.local")
            found.append(own.replace("APP", service).replace("PORT", str(port)))
        self.mesh.edit(*found)


@contextlib.contextmanager
def matrix(folder: Path) -> Iterator[Matrix]:
    """All of it, for the time of the block."""
    heard = folder / "heard"
    heard.touch()
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(secure_mesh(folder, SERVICES))
        one, two = (
            stack.enter_context(node(mesh, name, "--skip-deprecated-logs")) for name in ("vm1", "vm2")
        )
        pods = {name: stack.enter_context(pod()) for name in ("caller", "other", "v1", "v2")}
        for account, namespace in ACCOUNTS.items():
            stack.enter_context(registered(mesh, "vm1", account, pods[account], namespace=namespace))
        for version, at in (("v1", "vm2"), ("v2", "vm1")):
            stack.enter_context(_application(version, pods[version], heard))
            stack.enter_context(registered(mesh, at, "details", pods[version], version=version))
        for name, found in (("caller", one), ("other", one), ("details", two), ("details", one)):
            wait_until(lambda: f"{name}/inbound" in found.get("/listeners"), 30, name)  # noqa: B023
        port = _python_servers(stack, mesh, heard, folder)
        senders = {PYTHON: _python_callers(stack, mesh), NODE: _node_callers(pods)}
        services = {PYTHON: "reviews", NODE: "details"}
        ways = {
            f"{caller} to {server}": Way(send, service, heard)
            for caller, send in senders.items()
            for server, service in services.items()
        }
        at = {"reviews": ("127.0.0.1", port), "details": (pods["v1"].address, 9080)}
        yield Matrix(mesh, ways, {"reviews": port, "details": 9080}, lambda service: _plain(*at[service]))


def _python_servers(stack: contextlib.ExitStack, mesh: SecureMesh, heard: Path, folder: Path) -> int:
    """Both versions, at one port of two addresses: as the pods of a Deployment have one."""
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("HEARD", str(heard))
    port = free_port()
    served = [
        mesh.served(
            "serve-versioned",
            port=port,
            labels=f"app=reviews,version={version}",
            state_dir=str(folder / version),
            address=f"127.0.0.{number}",
        )
        for number, version in enumerate(("v1", "v2"), 1)
    ]
    with ThreadPoolExecutor() as pool:  # they start at the same time
        list(pool.map(stack.enter_context, served))
    return port


def _python_callers(stack: contextlib.ExitStack, mesh: SecureMesh) -> Any:
    clients = {}
    for account, namespace in ACCOUNTS.items():
        who = SpiffeId("cluster.local", namespace, account)
        token = mesh.tokens.issue(who, 60, time.time())
        joined = stack.enter_context(mesh.joined(account, namespace=namespace, token=token))
        clients[account] = stack.enter_context(meshlib.Client(mesh=joined))

    def send(account: str, host: str, method: str, path: str, headers: dict[str, str]) -> Answer:
        try:
            found = clients[account].request(method, f"http://{host}:9080{path}", headers=headers, timeout=20)
        except meshlib.MeshError as error:
            return Answer(error.status)
        return Answer(found.status_code, dict(found.headers), _told(found.content))

    return send


def _node_callers(pods: dict[str, Pod]) -> Any:
    def send(account: str, host: str, method: str, path: str, headers: dict[str, str]) -> Answer:
        try:
            found = ask(pods[account], "10.96.0.8", 9080, f"{host}:9080", path, method, **headers)
        except OSError:
            return Answer(0)
        return Answer(found.status, found.headers, _told(found.body))

    return send


def _told(body: bytes) -> dict[str, Any]:
    return json.loads(body) if body.startswith(b"{") else {}


def _plain(host: str, port: int) -> Answer:
    try:
        with httpx.Client(trust_env=False) as client:
            found = client.get(f"http://{host}:{port}/", headers={"x-forwarded-client-cert": "URI=me"})
    except httpx.TransportError:
        return Answer(0)
    return Answer(found.status_code, dict(found.headers), _told(found.content))


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def _application(version: str, where: Pod, heard: Path) -> Iterator[None]:
    made = _Server(("0.0.0.0", 9080), _Handler, bind_and_activate=False)
    made.socket.close()
    made.socket = where.listen(9080)
    made.server_name, made.server_port = version, 9080
    made.setup_environ()
    made.set_app(versioned(version, heard))
    with serving(made):
        yield
