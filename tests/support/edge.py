"""`meshlib gateway` in a process of its own, before a secure mesh, and who calls it."""

import contextlib
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support.commands import MESHLIB, wait_until
from support.ports import free_port
from support.secure_mesh import SecureMesh

READY = "gateway ingressgateway is ready"
_NUMBERS = itertools.count()


@dataclass
class Edge:
    """A running gateway; `ports` by the port of its Gateways."""

    process: subprocess.Popen[bytes]
    ports: dict[int, int]
    log: Path
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self.log.read_text()

    def get(self, path: str, host: str, port: int = 80, **options: Any) -> httpx.Response:
        """One request in plain text."""
        headers = {"host": host, **options.pop("headers", {})}
        with httpx.Client(trust_env=False, verify=False) as client:  # no roots to be loaded
            url = f"http://127.0.0.1:{self.ports[port]}{path}"
            return client.request(options.pop("method", "GET"), url, headers=headers, **options)

    def secure(self, host: str, port: int, context: ssl.SSLContext, name: str | None = None) -> ssl.SSLSocket:
        """A connection of TLS for that name. OSError: it is refused."""
        plain = socket.create_connection(("127.0.0.1", self.ports[port]), 10)
        try:
            return context.wrap_socket(plain, server_hostname=name or host)
        except BaseException:
            plain.close()
            raise

    def fetch(self, host: str, port: int, context: ssl.SSLContext, path: str = "/") -> tuple[int, bytes]:
        """Status and body of one request over TLS. OSError: there is none."""
        with self.secure(host, port, context) as made:
            made.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            whole = b"".join(iter(lambda: made.recv(65536), b""))
        if not whole:
            raise ConnectionResetError("no answer")
        head, _, body = whole.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def admin(self, path: str) -> bytes:
        """What Envoy's admin interface answers."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        folder = Path(os.fsdecode(command[command.index(b"-c") + 1])).parent
        transport = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
        with httpx.Client(transport=transport, trust_env=False) as client:
            return client.get(f"http://admin{path}").content

    def secrets(self) -> set[str]:
        """The names of those that Envoy has."""
        told = json.loads(self.admin("/config_dump?resource=dynamic_active_secrets"))
        return {one["name"] for one in told.get("configs", ()) if one.get("version_info") or "secret" in one}

    def raw(self, data: bytes, port: int = 80) -> bytes:
        """All that comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.ports[port]), 10) as made:
            made.settimeout(20)
            found = b""
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                made.sendall(data)
                while more := made.recv(65536):
                    found += more
        return found


@contextlib.contextmanager
def edge(mesh: SecureMesh, *ports: int, options: tuple[str, ...] = ()) -> Iterator[Edge]:
    """A gateway for these ports of Gateways."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    settings = mesh.settings("ingress")
    own |= {f"MESHLIB_{name.upper()}": str(value) for name, value in settings.items()}
    own["MESHLIB_STATE_DIR"] = str(mesh.folder / "edge")
    bound = {port: free_port() for port in ports}
    command = [*MESHLIB, "gateway", "--address", "127.0.0.1", "--concurrency", "1", *options]
    for port, number in bound.items():
        command += ["--port", f"{port}={number}"]
    log = mesh.folder / f"edge-{next(_NUMBERS)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT)
        made = Edge(process, bound, log)
        try:
            wait_until(lambda: READY in made.said or process.poll() is not None, 60, READY)
            assert process.poll() is None, made.said
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                # Nobody is connected: it does not wait for its time to drain, thirty seconds.
                process.wait(20)
            finally:
                process.kill()
                process.wait()
                print(made.said)
