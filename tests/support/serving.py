"""A secure mesh of real processes: its control service, servers of any kind, and callers of any identity."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.commands import MESHLIB, Control, answers, wait_until
from support.ports import free_port

import meshlib
from meshlib.control.ca.tokens import JoinTokens
from meshlib.identity.spiffe import SpiffeId

TESTS = Path(__file__).parent.parent
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {0}}}
spec:
  ports: [{{port: 9080, name: http}}]
  selector: {{app: {0}}}
---
"""
POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: front}
spec:
  selector: {matchLabels: {tier: front}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/page]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: back}
spec:
  selector: {matchLabels: {app: back}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/front]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec:
  selector: {matchLabels: {app: strict}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict-tier}
spec:
  selector: {matchLabels: {tier: strict}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: plain}
spec:
  selector: {matchLabels: {tier: plain}}
  rules:
  - to: [{operation: {notPaths: ["/admin*"]}}]
"""


class SecureMesh:
    """A running control service, in a folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._state = folder / "state"

    @property
    def log(self) -> str:
        """What the control service has printed."""
        return (self.folder / "control.log").read_text()

    def settings(self, account: str) -> dict[str, str]:
        """What lets a workload of that account join, as settings."""
        token = JoinTokens.open(self._state).issue(
            SpiffeId("cluster.local", "default", account), 600, time.time()
        )
        return {
            "control": self.address,
            "ca_file": str(self._state / "roots.pem"),
            "token": token,
            "service_account": account,
            "namespace": "default",
            "state_dir": str(self.folder / f"state-of-{account}"),
        }

    def environ(self, account: str, **more: str) -> dict[str, str]:
        """The same for a process, which has nothing else of the mesh."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        path = os.pathsep.join((str(TESTS), own.get("PYTHONPATH", "")))
        found = {**self.settings(account), **more}
        return {
            **own,
            "PYTHONPATH": path,
            **{f"MESHLIB_{name.upper()}": value for name, value in found.items()},
        }

    @contextmanager
    def client(self, account: str) -> Iterator[meshlib.Client]:
        """A client with an identity."""
        with self.workload(account) as mesh, meshlib.Client(mesh=mesh, timeout=20) as client:
            yield client

    def workload(self, account: str) -> meshlib.Mesh:
        """A place in the mesh in this process."""
        return meshlib.connect(**self.settings(account))

    @contextmanager
    def process(
        self, command: Iterable[str], app: str, account: str, tier: str, **more: str
    ) -> Iterator["Served"]:
        """A server of the service `app`, with `more` settings; ends with SIGTERM, and has to end well."""
        log = self.folder / f"{app}-{time.monotonic_ns()}.log"
        environ = self.environ(
            account,
            labels=f"app={app},tier={tier}",
            state_dir=str(log.with_suffix(".state")),
            **{"drain": "0.5", **more},
        )
        with log.open("w") as file:
            process = subprocess.Popen(
                list(command), env=environ, stdout=file, stderr=subprocess.STDOUT, cwd=self.folder
            )
        served = Served(process, log)
        try:
            yield served
            served.end()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class Served:
    """A server's process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text()

    def end(self) -> None:
        """Tells it to stop, and waits."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        assert self.process.returncode in (0, -signal.SIGTERM), self.said
        assert "Traceback" not in self.said, self.said


@contextmanager
def secure_mesh(folder: Path, services: Iterable[str]) -> Iterator[SecureMesh]:
    """A control service with these services, `back` among them, whose server runs."""
    (folder / "mesh").mkdir()
    documents = "".join(SERVICE.format(name) for name in ("back", *services))
    (folder / "mesh" / "mesh.yaml").write_text(documents + POLICIES)
    address, log = f"127.0.0.1:{free_port()}", folder / "control.log"
    options = ["--listen", address, "--state", str(folder / "state")]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*MESHLIB, "control", str(folder / "mesh"), *options],
            env=own,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_until(lambda: answers(Control(address, process)), 60, "the control service")
        found = SecureMesh(folder, address)
        with ExitStack() as stack:
            stack.enter_context(found.process(serve("support.served_fastapi:app"), "back", "back", "back"))
            with found.client("front") as front:
                until(front, "http://back:9080/seen")
            yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def serve(target: str, *options: str) -> list[str]:
    """`meshlib serve` at a free port."""
    return [*MESHLIB, "serve", target, "--port", "0", *options]


def gunicorn(worker: str, target: str, *options: str, port: int = 0, host: str = "127.0.0.1") -> list[str]:
    """gunicorn with a worker class at a port."""
    bind = f"{host}:{port or free_port()}"
    return [sys.executable, "-m", "gunicorn", "-k", worker, "-b", bind, *options, target]


def until(client: meshlib.Client, url: str, seconds: float = 60) -> Any:
    """The first answer that is not "no endpoint"."""
    end = time.monotonic() + seconds
    while True:
        try:
            reply = client.get(url)
        except meshlib.RequestError as error:
            reply = error
        if getattr(reply, "status_code", 503) != 503:
            return reply
        assert time.monotonic() < end, reply
        time.sleep(0.05)
