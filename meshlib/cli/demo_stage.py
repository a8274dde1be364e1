"""The demo's processes: the control service and Bookinfo's six, in a folder of their own.

- The stage binds the ports of Python's services and hands them on, so that a taken port is known before
  anything starts, and nobody can take one in between.
- Every child is tethered: it ends with this process, however this process ends.
- What a child prints goes to a log file; its last lines are shown when it ends unasked.
- Each service joins by a token of its own, and the stage has an identity, too: what it asks a service
  about itself it asks over mutual TLS, which is always taken.
"""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import httpx

import meshlib
from meshlib.control.ca.mesh import MeshNote
from meshlib.control.ca.tokens import JoinTokens
from meshlib.core.mtls import ClientTls
from meshlib.errors import MeshError
from meshlib.identity.spiffe import SpiffeId

HOST = "127.0.0.1"
FRONT = "productpage"
CAST = (
    ("details", "v1"),
    ("ratings", "v1"),
    ("reviews", "v1"),
    ("reviews", "v2"),
    ("reviews", "v3"),
    (FRONT, "v1"),
)
JASON_WITH_CHROME = {
    "end-user": "jason",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0 Safari/537.36",
}
START_LIMIT = 90.0
"""Seconds until everything must serve; a slow machine with cold caches needs a third of it."""
STOP_LIMIT = 5.0
TOKEN_LIFE = 3600
"""Seconds within which a service must get its first certificate; later its certificate is its token."""
LAST_WORDS = 15
"""Lines of its log that are shown when a child ends unasked."""


class DemoError(MeshError):
    """The demo can't go on; the message says why, and what to do about it."""


@dataclass
class Child:
    """One process of the demo."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    account: str = ""
    """As whom it joins by a token; empty: it does not."""
    namespace: str = "default"
    url: str = ""
    listener: socket.socket | None = None
    process: subprocess.Popen[bytes] | None = None
    mourned: bool = False
    """Whether its end was reported."""

    def start(self) -> None:
        """Starts the process, tethered to this one."""
        descriptor = () if self.listener is None else (self.listener.fileno(),)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 our own modules and arguments
                [sys.executable, "-m", "meshlib.cli.tether", *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                pass_fds=descriptor,
                start_new_session=True,
            )
        if self.listener is not None:
            self.listener.close()
        self.mourned = False

    @property
    def own_url(self) -> str:
        """Where the stage itself asks it about itself: over TLS."""
        return self.url.replace("http://", "https://", 1)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The number of the process; 0 before it started."""
        return self.process.pid if self.process else 0

    def last_words(self) -> str:
        """How it ended, and the last lines that it printed."""
        code = self.process.poll() if self.process else None
        if code is None:
            how = "runs"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_WORDS:]
        said = "".join(f"\n    {line}" for line in lines)
        return f"{self.name} {how}; the last of {self.log}:{said or ' nothing'}"


@dataclass
class Stage:
    """All processes of one demo, and where they are."""

    folder: Path
    """Holds `mesh/` (the YAML in force), `logs/` and `state/`."""
    port: int = 9080
    control_port: int = 0
    children: dict[str, Child] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is not as it was meant to be, and what to do about it."""
    _context: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def mesh(self) -> Path:
        """The folder of YAML that the control service watches."""
        return self.folder / "mesh"

    @property
    def authority(self) -> Path:
        """The state folder of the control service: its certificate authority."""
        return self.folder / "authority"

    @property
    def control(self) -> Child:
        """The control service's process."""
        return self.children["control"]

    @property
    def control_address(self) -> str:
        """Where the control service listens."""
        return f"{HOST}:{self.control_port}"

    @property
    def front(self) -> Child:
        """Without it there is no page."""
        return self.children[f"{FRONT} v1"]

    @property
    def page(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}"

    def set_up(self) -> None:
        """Binds the ports and copies the YAML; nothing runs yet. Raises DemoError when a port is taken."""
        with bind(self.control_port, "--control-port") as probe:
            self.control_port = probe.getsockname()[1]
        self._cast()
        if not self.mesh.exists():
            with as_file(files("meshlib_bookinfo")) as shipped:
                self._copy_rules(shipped)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._child(
            "control",
            *("meshlib.cli", "control", str(self.mesh)),
            *("--listen", self.control_address, "--state", str(self.authority)),
        )

    def _cast(self) -> None:
        """Binds the services' ports."""
        for service, version in CAST:
            listener = bind(self.port if service == FRONT else 0, "--port")
            if service == FRONT:
                self.port = listener.getsockname()[1]
            self._add_python(service, version, listener)

    def _add_python(self, service: str, version: str, listener: socket.socket) -> None:
        """A service of Bookinfo that is to serve at that socket."""
        name = f"{service} {version}"
        child = self._child(
            name, "meshlib_bookinfo", service, "--version", version, "--fd", str(listener.fileno())
        )
        child.account, child.listener = f"bookinfo-{service}", listener
        child.url = f"http://{HOST}:{listener.getsockname()[1]}"

    def _copy_rules(self, shipped: Path) -> None:
        """Puts the YAML where it is watched."""
        shutil.copytree(shipped / "mesh", self.mesh)

    def start(self) -> None:
        """Starts everything and waits until the page is whole. DemoError when a child does not come up."""
        until = time.monotonic() + START_LIMIT
        self.start_control(until)
        self._start_cast(until)
        with httpx.Client(verify=self.context(), trust_env=False, timeout=5.0) as browser:
            self._wait(lambda: self._whole(browser), "Bookinfo to be whole", until)

    def _start_cast(self, until: float) -> None:
        """Starts all that the control service is there for; whoever needs another waits for it."""
        for child in self.children.values():
            if child is not self.control:
                self._start(child)

    def _start(self, child: Child) -> None:
        if child.account:
            child.env |= self.identity(child.account, child.namespace)
        child.start()

    def join(self) -> meshlib.Mesh:
        """A mesh of the stage's own, as the workload `demo`."""
        who = self.identity("demo")
        return meshlib.connect(
            self.control_address,
            state_dir="",
            service_account="demo",
            ca_file=who["MESHLIB_CA_FILE"],
            token=who["MESHLIB_TOKEN"],
            allow_plaintext=False,
        )

    def context(self) -> ssl.SSLContext:
        """TLS by the stage's own certificate, for addresses of services."""
        if self._context is None:
            with self.join() as mesh:
                assert mesh.certs is not None  # noqa: S101 - it does not talk in plain text
                mesh.certs.ensure()
                self._context = mesh.certs.contexts.client(ClientTls())
        return self._context

    def identity(self, account: str, namespace: str = "default") -> dict[str, str]:
        """The environment by which a workload of that account joins."""
        who = SpiffeId.of(MeshNote.read(self.authority).trust_domain, namespace, account)
        token = JoinTokens.open(self.authority).issue(who, TOKEN_LIFE, time.time())
        return {"MESHLIB_CA_FILE": str(self.authority / "roots.pem"), "MESHLIB_TOKEN": token}

    def start_control(self, until: float | None = None) -> None:
        """Starts the control service, the first time or again, and waits until it listens."""
        self.control.start()
        self._wait(self._control_listens, "the control service", until or time.monotonic() + START_LIMIT)

    def ended(self) -> list[Child]:
        """The children that ended since this was last asked."""
        found = [c for c in self.children.values() if c.process and not c.running and not c.mourned]
        for child in found:
            child.mourned = True
        return found

    def stop(self) -> None:
        """Ends every child: asks, waits, then insists."""
        running = [child.process for child in self.children.values() if child.process]
        for process in running:
            process.terminate()
        until = time.monotonic() + STOP_LIMIT
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()
        for child in self.children.values():
            if child.listener is not None:
                child.listener.close()

    def _child(self, name: str, *command: str) -> Child:
        slug = name.replace(" ", "-")
        env = {key: value for key, value in os.environ.items() if not key.startswith("MESHLIB_")}
        env |= {
            "MESHLIB_CONTROL": self.control_address,
            "MESHLIB_STATE_DIR": str(self.folder / "state" / slug),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }
        made = Child(name, list(command), env, self.folder / "logs" / f"{slug}.log")
        self.children[name] = made
        return made

    def _control_listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.control_port), 0.2).close()
        except OSError:
            return False
        return True

    def _whole(self, browser: httpx.Client) -> bool:
        """Whether all serve, and details and each version of reviews are reached, v3 by mirrored requests."""
        if not all(_ok(browser, f"{child.own_url}/healthz") for child in self.children.values() if child.url):
            return False
        api = f"{self.page}/api/v1/products/0"
        stats = f"{self.children['reviews v3'].own_url}/stats"
        try:
            return (
                browser.get(api).is_success
                and browser.get(f"{api}/reviews").is_success
                and '"stars"' in browser.get(f"{api}/reviews", headers=JASON_WITH_CHROME).text
                and browser.get(stats).json()["requests"] > 0
            )
        except httpx.HTTPError:
            return False

    def _wait(self, ready: Callable[[], bool], what: str, until: float) -> None:
        while not ready():
            ended = self.ended()
            if ended:
                raise DemoError("\n".join(child.last_words() for child in ended))
            if time.monotonic() > until:
                raise DemoError(
                    f"waited {START_LIMIT:.0f} seconds for {what}; the logs are in {self.folder / 'logs'}:\n"
                    + "\n".join(child.last_words() for child in self.children.values() if child.process)
                )
            time.sleep(0.05)


def bind(port: int, option: str) -> socket.socket:
    """A bound loopback socket; DemoError, with the option to choose another, when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if port:
        # Not for a free port: who does not listen yet would share it with another who asks for one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        if port:
            listener.listen(1)
    except OSError as error:
        listener.close()
        raise DemoError(
            f"port {port} of {HOST} can't be used ({(error.strerror or '').lower()}); "
            f"choose another: {option} {port + 1}, for example"
        ) from None
    return listener


def _ok(browser: httpx.Client, url: str) -> bool:
    try:
        return browser.get(url).is_success
    except httpx.HTTPError:
        return False
