"""The processes of `meshlib demo --mixed`: Bookinfo of which only half is Python, under STRICT.

    curl ─► gateway (Envoy) ─► productpage ─► reviews v2, v3 ─► ratings (Node.js)
                                   └─► details (nginx)     ◄─┘   its node's Envoy before both

- ratings and details are run by `meshlib node run`, behind one Envoy. Where that can be, each is captured in
  a network namespace, which goes with it. Else (explicit mode) they can be reached beside it, which is said.
- Without nginx details is Python, as in the other demo; without Node.js there is nothing to show.
- The node's socket is in a folder of its own: the name of a Unix socket has to be short.
"""

import asyncio
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from meshlib.agent import node_socket
from meshlib.agent.folder import own_folder
from meshlib.agent.netns import obstacle
from meshlib.agent.process import envoy_path
from meshlib.cli.demo_stage import HOST, Child, DemoError, Stage, bind
from meshlib.control.ca import nodes
from meshlib.errors import ConfigError
from meshlib.xds.names import NODE_NAMESPACE

NODE = "vm1"
PYTHON = (("reviews", "v2"), ("reviews", "v3"), ("productpage", "v1"))
RULES = ("services.yaml", "destination-rule-all.yaml", "gateway.yml", "virtual-service.yml")
"""Of the tutorial's mesh."""
WEIGHTS = "virtual-service-reviews.yml"
STRICT = "tutorial/enable-strict-mode.yml"
NODE_JS = "apt-get install nodejs, dnf install nodejs, brew install node, or https://nodejs.org"
NGINX = "apt-get install nginx-light, dnf install nginx, or brew install nginx"
_MORE_PATH = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")
"""Where nginx is, also for users whose PATH does not say so."""


@dataclass
class MixedStage(Stage):
    """All of them; `page` is at the gateway."""

    wanted: bool | None = None
    """Whether to capture; None: if it can be."""
    capture: bool = field(default=False, init=False)
    """Whether what is not Python is captured."""
    nginx: bool = field(default=True, init=False)
    """Whether details is in nginx."""
    foreign: list[str] = field(default_factory=list)
    """The services behind the node's Envoy."""
    _sockets: Path | None = field(default=None, repr=False)
    _ours: bool = field(default=False, repr=False)
    """Whether the rules are those of the demo, as nobody has edited them."""
    _held: ExitStack = field(default_factory=ExitStack, repr=False)
    _starred: set[str] = field(default_factory=set, repr=False)
    """Versions of reviews that had stars."""

    @property
    def front(self) -> Child:
        """The gateway."""
        return self.children["gateway"]

    @property
    def socket(self) -> Path:
        """Where the node's agent is spoken to."""
        assert self._sockets is not None  # noqa: S101 - made when it is set up
        return self._sockets / "node.sock"

    def workloads(self) -> dict[str, dict[str, Any]]:
        """What the node's agent lists, by service; nothing while it is not there."""
        try:
            said = asyncio.run(node_socket.ask(self.socket, {"do": "list"}))
        except node_socket.NodeUnreachable:
            return {}
        return {one["name"]: one for one in said["workloads"]}

    def stop(self) -> None:
        """Ends every child."""
        super().stop()
        self._held.close()

    def _cast(self) -> None:
        self.capture = self._can_capture()
        if self.mesh.exists() and not (self.mesh / WEIGHTS).exists():
            raise DemoError(f"{self.mesh} has other rules than those of --mixed; choose another --folder")
        envoy_path()
        node_js = _program("node", "nodejs")
        if node_js is None:
            raise DemoError(f"Node.js is not installed, in which ratings is written; {NODE_JS}")
        nginx = _program("nginx")
        self._sockets = self._held.enter_context(own_folder("sockets"))
        with bind(self.port, "--port") as probe:
            self.port = probe.getsockname()[1]
        gateway = self._child(
            "gateway",
            *("meshlib.cli", "gateway", "--service-account", "ingress", "--address", HOST),
            *("--port", f"80={self.port}", "--concurrency", "1", "--drain", "0"),
        )
        gateway.account = "ingress"
        node = self._child(
            "node",
            *("meshlib.cli", "node", "--name", NODE, "--socket", str(self.socket)),
            *("--concurrency", "1", "--drain", "0"),
        )
        node.account, node.namespace = NODE, NODE_NAMESPACE
        for service, version in PYTHON:
            self._add_python(service, version, bind(0, "--port"))
        self._add_foreign("ratings", 0, node_js, str(shipped() / "mixed/ratings.js"))
        self.nginx = nginx is not None
        if nginx is None:
            self.notes.append(f"nginx is not installed: details is in Python; {NGINX}")
            self._add_python("details", "v1", bind(0, "--port"))
        else:
            folder = self.folder / "nginx"
            own = 9080 if self.capture else _free_port()
            arguments = ("-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr")
            self._add_foreign("details", own, nginx, *arguments)
            folder.mkdir(parents=True, exist_ok=True)
            listen = str(own) if self.capture else f"{HOST}:{own}"
            conf = (shipped() / "mixed/details.conf").read_text()
            (folder / "nginx.conf").write_text(conf.replace("${LISTEN}", listen))

    def _can_capture(self) -> bool:
        """ConfigError: it is to, and can't."""
        if self.wanted is False:
            why = "as --no-capture says"
        else:
            why = asyncio.run(obstacle())
            if why and self.wanted:
                raise ConfigError(f"--capture makes network namespaces: {why}")
        if why:
            self.notes.append(
                f"nothing is captured, {why}: whoever is on this machine reaches Node.js and nginx beside "
                "their Envoy, in plain text, and calls as they do by the proxies that they have"
            )
        return not why

    def _add_foreign(self, service: str, own: int, *command: str) -> None:
        """A program behind the node's Envoy; `own`: where it listens itself, 0: where `PORT` says."""
        self.foreign.append(service)
        port = 9080 if self.capture else _free_port()
        mode = () if self.capture else ("--explicit",)
        app_port = ("--app-port", f"{port}={own}") if own and not self.capture else ()
        self._child(
            f"{service} v1",
            *("meshlib.cli", "node", "run", "--socket", str(self.socket), "--name", service, *mode),
            *("--service", service, "--account", f"bookinfo-{service}"),
            *("--labels", f"app={service},version=v1", "--port", f"http={port}", *app_port),
            *("--", *command),
        )

    def _copy_rules(self, shipped: Path) -> None:
        self._ours = True
        shutil.copytree(shipped / "mixed/mesh", self.mesh)
        for name in RULES:
            shutil.copy(shipped / "mesh" / name, self.mesh)
        shutil.copy(shipped / STRICT, self.mesh)

    def _start_cast(self, until: float) -> None:
        nodes.allow(self.authority, NODE, [f"default/bookinfo-{service}" for service in self.foreign])
        behind = [self.children[f"{service} v1"] for service in self.foreign]
        for child in self.children.values():
            if child is not self.control and child not in behind:
                self._start(child)
        # Without it `node run` would run a node of its own.
        self._wait(self._agent_answers, "the node's agent", until)
        for child in behind:
            self._start(child)

    def start(self) -> None:
        """Starts everything and waits until the page is whole. DemoError when a child does not come up."""
        super().start()
        for service, one in self.workloads().items():
            (port,) = one["ports"].values()
            self.children[f"{service} v1"].url = f"http://{one['address']}:{port}"

    def _agent_answers(self) -> bool:
        try:
            asyncio.run(node_socket.ask(self.socket, {"do": "about"}))
        except node_socket.NodeUnreachable:
            return False
        return True

    def _whole(self, browser: httpx.Client) -> bool:
        """Whether details and reviews are reached by way of the gateway: both versions, with stars, unless
        somebody wrote other rules.
        """
        api = f"{self.page}/api/v1/products/0"
        try:
            if not browser.get(api).is_success:
                return False
            found = browser.get(f"{api}/reviews")
            if not self._ours:
                return found.is_success
        except httpx.HTTPError:
            return False
        if '"stars"' in found.text:
            self._starred.add(str(found.json()["version"]))
        return len(self._starred) == 2


def _program(*names: str) -> str | None:
    """Where the first of these is that is installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PATH))
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def _free_port() -> int:
    with bind(0, "--port") as probe:
        return int(probe.getsockname()[1])


def shipped() -> Path:
    """Where Bookinfo's files are."""
    import meshlib_bookinfo

    return Path(meshlib_bookinfo.__file__).parent
