"""A whole mesh with identities: control in this process, served applications, clients under load."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import MESHLIB, wait_until
from support.ports import free_port
from support.turning import turn

import meshlib
from meshlib.control.build import Builder
from meshlib.control.built import Build
from meshlib.control.ca.authority import Authority
from meshlib.control.ca.nodes import Permissions
from meshlib.control.ca.request import MAX_TTL_S, service_names
from meshlib.control.ca.tokens import JoinTokens
from meshlib.control.serve.server import Security
from meshlib.control.service import ControlService
from meshlib.control.sources.files import FileSource
from meshlib.identity.spiffe import SpiffeId

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}]
"""
URL = "http://reviews:9080"
PACE = 0.02
"""Seconds between the end of a request and the next one, of each that asks: load, and no full one."""
_GUNICORN = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:PORT", "--log-level", "warning", "-k"]
_UVICORN = [
    sys.executable,
    "-m",
    "uvicorn",
    "support.telling:met",
    "--port",
    "PORT",
    "--log-level",
    "critical",
]
_GRANIAN = [
    sys.executable,
    "-m",
    "granian",
    "--no-log",
    "--host",
    "127.0.0.1",
    "--port",
    "PORT",
    "--interface",
]
MESHED = {
    "serve": [*MESHLIB, "serve", "support.telling:app", "--port", "PORT"],
    "serve-h11": [sys.executable, "-m", "support.serving_parser", "h11", "PORT"],
    "serve-wsgi": [*MESHLIB, "serve", "support.telling_wsgi:app", "--port", "PORT"],
    "sync": [*_GUNICORN, "meshlib_gunicorn.SyncMeshWorker", "support.telling_wsgi:app"],
    "gthread": [*_GUNICORN, "meshlib_gunicorn.ThreadWorker", "--threads", "2", "support.telling_wsgi:app"],
    "uvicorn-worker": [*_GUNICORN, "meshlib_gunicorn.UvicornWorker", "support.telling:app"],
}
"""Servers whose port the mesh secures."""
FOREIGN = {
    "uvicorn-httptools": [*_UVICORN, "--http", "httptools"],
    "uvicorn-h11": [*_UVICORN, "--http", "h11"],
    "hypercorn": [sys.executable, "-m", "hypercorn", "support.telling:met", "--bind", "127.0.0.1:PORT"],
    "granian": [*_GRANIAN, "asgi", "support.telling:met"],
    "granian-wsgi": [*_GRANIAN, "wsgi", "support.telling_wsgi:met"],
}
"""Servers before whose application the mesh's middleware stands."""
SERVERS = MESHED | FOREIGN
OTHERS = {
    # Its watching process registers, and follows no configuration.
    "serve-workers": [*MESHED["serve"], "--workers", "2"],
    # It renews its certificate after a quarter of its term.
    "serve-renewing": [sys.executable, "-m", "support.renewing", "0.25", *MESHED["serve"][2:]],
    # More often yet.
    "serve-often-renewing": [sys.executable, "-m", "support.renewing", "0.02", *MESHED["serve"][2:]],
    "serve-greeter": [sys.executable, "-m", "support.renewing", "0.02", "soak.greeting", "PORT"],
    "serve-versioned": [*MESHLIB, "serve", "support.versioned:app", "--port", "PORT", "--host", "HOST"],
    "serve-websockets": [*MESHLIB, "serve", "support.websocket_app:app", "--port", "PORT"],
}
"""More that `served` knows."""


@dataclass
class SecureMesh:
    """A control service on a thread of its own."""

    folder: Path
    documents: Path
    authority: Authority
    tokens: JoinTokens
    loop: asyncio.AbstractEventLoop
    address: str = "127.0.0.1:0"
    service: ControlService | None = None
    gateways: list[tuple[str, str]] = field(default_factory=lambda: [("default", "ingress")])
    """Who may have keys of Secrets; read at each start."""
    build: Build | None = None
    """What builds configurations in place of the real one."""

    async def start(self) -> None:
        """Runs at the address that it had, if it had one."""
        permissions = Permissions(self.folder / "ca")
        security = Security(self.authority, self.tokens, nodes=permissions, hosts=service_names)
        again = not self.address.endswith(":0")  # servers of an earlier life come back
        made = ControlService(
            FileSource(self.documents),
            self.build or Builder(trust_domain=self.authority.trust_domain, gateways=self.gateways),
            self.address,
            security=security,
            settle=3.0 * again,
        )
        await made.start()
        self.service, self.address = made, made.address

    async def stop(self) -> None:
        """Is down."""
        made, self.service = self.service, None
        if made is not None:
            await made.stop()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Is down for the time of the block."""
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(20)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(20)

    def settings(self, account: str, life: int = 60) -> dict[str, Any]:
        """With which a workload joins."""
        who = SpiffeId("cluster.local", "default", account)
        return {
            "control": self.address,
            "service_account": account,
            "ca_fingerprint": self.authority.fingerprint,
            "token": self.tokens.issue(who, life, time.time()),
        }

    @contextlib.contextmanager
    def joined(self, account: str, **options: Any) -> Iterator[meshlib.Mesh]:
        """A workload in this process."""
        settings = self.settings(account) | {"state_dir": ""} | options
        with meshlib.connect(settings.pop("control"), **settings) as mesh:
            try:
                yield mesh
            finally:
                if mesh.certs is not None:
                    mesh.certs.close()

    def rotate_root(self, *, overlap_s: float, keep_s: float) -> None:
        """As `meshlib ca rotate-root` does it: on disk, from another process's point of view."""
        other = Authority.existing(self.folder / "ca", now=time.time())
        other.rotate_root(time.time(), overlap_s=overlap_s, keep_s=keep_s)

    def turn(self, *, settled: bool = False) -> None:
        """The rotation that was begun goes on now, see `turning`."""
        turn(self.folder / "ca", settled=settled)

    def edit(self, *documents: str) -> None:
        """Other documents, from now on."""
        new = self.documents.with_suffix(".new")
        new.write_text("\n---\n".join((SERVICE, *documents)))
        new.rename(self.documents / "mesh.yaml")

    @contextlib.contextmanager
    def served(self, server: str = "serve", port: int = 0, **settings: str) -> Iterator["Served"]:
        """`support.telling` in a process of its own, by one of SERVERS or OTHERS; `port` 0: any."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        own["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parents[1]), own.get("PYTHONPATH", "")))
        usual = {"state_dir": str(self.folder / "served"), "labels": "app=reviews", "address": "127.0.0.1"}
        own |= {
            f"MESHLIB_{name.upper()}": value
            for name, value in (usual | self.settings("reviews") | settings).items()
        }
        port = port or free_port()
        own["PORT"] = str(port)
        host = own["MESHLIB_ADDRESS"]
        command = [one.replace("PORT", str(port)).replace("HOST", host) for one in (SERVERS | OTHERS)[server]]
        process = subprocess.Popen(
            command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            if server.startswith("serve"):
                _announced(process)
            else:
                wait_until(lambda: process.poll() is not None or _answers(port), 30, server)
            yield Served(process, port, server)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                said = process.communicate(timeout=15)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                said = process.communicate()[0]
            sys.stdout.write(said)


@dataclass
class Served:
    """A served application."""

    process: subprocess.Popen[str]
    port: int
    name: str
    """Of SERVERS or OTHERS."""


def _announced(process: subprocess.Popen[str]) -> None:
    """Waits until the server says that it serves."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("serving at "):
            return
    raise AssertionError(f"it does not serve: {said}")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as made:
            made.sendall(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n")
            return bool(made.recv(1))
    except OSError:
        return False


@contextlib.contextmanager
def secure_mesh(
    folder: Path,
    *documents: str,
    max_ttl_s: int = MAX_TTL_S,
    address: str = "127.0.0.1:0",
    building: Callable[[Authority], Build] | None = None,
) -> Iterator[SecureMesh]:
    """A mesh of the service reviews and these documents; `building` makes what builds configurations."""
    rules = folder / "mesh"
    rules.mkdir()
    (rules / "mesh.yaml").write_text("\n---\n".join((SERVICE, *documents)))
    authority = Authority.open(
        folder / "ca", trust_domain="cluster.local", now=time.time(), max_ttl_s=max_ttl_s
    )
    tokens = JoinTokens.open(folder / "ca")
    started, stop = threading.Event(), threading.Event()
    made: list[SecureMesh] = []

    async def run() -> None:
        mesh = SecureMesh(folder, rules, authority, tokens, asyncio.get_running_loop(), address)
        mesh.build = None if building is None else building(authority)
        await mesh.start()
        made.append(mesh)
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
        await mesh.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="control")
    thread.start()
    try:
        wait_until(lambda: started.is_set() or not thread.is_alive(), 20, "the control service")
        yield made[0]
    finally:
        stop.set()
        thread.join(20)


class Asking:
    """Asks all the time, from a thread of its own: blocking, and with new connections every few requests."""

    def __init__(self, mesh: meshlib.Mesh, requests_of_a_client: int = 10) -> None:
        self._mesh = mesh
        self._of_a_client = requests_of_a_client
        self.answers = 0
        self.failures: list[str] = []
        self.principals: set[str | None] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._end.is_set():
            with meshlib.Client(mesh=self._mesh) as client:
                for _ in range(self._of_a_client):
                    with self._watched():
                        self._took(client.get(URL + "/x"))
                    if self._end.wait(PACE):
                        return

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures.append(f"{time.time():.2f} {error!r}")

    def _took(self, response: Any) -> None:
        if response.status_code != 200:
            self.failures.append(f"{time.time():.2f} {response.status_code} {response.text}")
            return
        self.answers += 1
        self.principals.add(response.json()["principal"])

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)


class AsyncAsking(Asking):
    """The same with asyncio."""

    def _ask(self) -> None:
        asyncio.run(self._aask())

    async def _aask(self) -> None:
        while not self._end.is_set():
            async with meshlib.AsyncClient(mesh=self._mesh) as client:
                for _ in range(self._of_a_client):
                    if self._end.is_set():
                        return
                    with self._watched():
                        self._took(await client.get(URL + "/x"))
                    await asyncio.sleep(PACE)


@contextlib.contextmanager
def asked(mesh: meshlib.Mesh) -> Iterator[list[Asking]]:
    """Load of every kind: blocking and asyncio, with new connections and with one that lasts."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(kind(mesh, count))
            for kind in (Asking, AsyncAsking)
            for count in (10, 1_000_000)
        ]


def more(asking: list[Asking], count: int = 20) -> None:
    """Waits until each got so many answers more, or one failed."""
    until = [one.answers + count for one in asking]
    wait_until(
        lambda: (
            any(one.failures for one in asking)
            or all(one.answers >= least for one, least in zip(asking, until, strict=True))
        ),
        60,
        "answers",
    )


def failures(asking: list[Asking]) -> list[str]:
    """Everything that failed."""
    return [failure for one in asking for failure in one.failures]
