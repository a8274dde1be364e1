"""A stage for the cases of interoperability: who answers, one case as documents, one case with one client."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import wait_until
from support.grpc_server import PATH, Seen
from support.interop_clients import Client, Told
from support.ports import free_port

DOCUMENTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  ports: [{{number: {port}, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
{endpoints}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}
  trafficPolicy: {{{policy}}}
  subsets: [{{name: a, labels: {{version: a}}}}, {{name: b, labels: {{version: b}}}}]
"""
RULES = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  http: {http}
"""
ROUND_ROBIN = "loadBalancer: {simple: ROUND_ROBIN}"


@dataclass
class World:
    """Who answers, and the folder of rules."""

    folder: Path
    port: int
    """Of every service."""
    a: Seen
    b: Seen
    near: int = field(default_factory=free_port)
    """Of an endpoint that is there only in some cases."""
    keys: list[str] = field(default_factory=list)
    """Where the first client's keys went."""

    @property
    def ports(self) -> dict[str, int]:
        return {"a": self.a.port, "b": self.b.port, "near": self.near}

    def write(self, case: "Case", endpoints: str = "") -> None:
        """Puts a case in force; `endpoints` in place of its own."""
        new = self.folder.with_suffix(".new")
        new.write_text(case.documents(self, endpoints))
        new.rename(self.folder / f"{case.host}.yaml")


@dataclass
class Play:
    """One case with one client."""

    case: "Case"
    world: World
    client: Client

    def ask(self, method: str = "who", message: str = "", **asked: Any) -> Told:
        host = f"{self.case.host}:{self.world.port}"
        return self.client(host, method=PATH + method, message=message, **{"deadline": 60, **asked})

    def until(self, wanted: set[str]) -> None:
        """Waits until these answer and no others."""
        wait_until(lambda: set(self.ask(calls=6).answers) == wanted, 60, f"{wanted} to answer")

    @contextlib.contextmanager
    def failing(self, method: str, calls: int) -> Iterator[None]:
        """So many calls of that method are answered by UNAVAILABLE, by `a`."""
        self.world.a.failing[method] = calls
        try:
            yield
        finally:
            self.world.a.failing.pop(method)


@dataclass(frozen=True)
class Case:
    """One row of the page."""

    name: str
    come: Callable[[Play], str]
    http: str = ""
    """Of a VirtualService; without it there is none. `<all>` is its host, `<a>` and `<b>` its subsets."""
    policy: str = ROUND_ROBIN
    endpoints: str = "a"
    """Who answers: names, each with what stands in its ServiceEntry besides."""

    @property
    def host(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60]

    def documents(self, world: World, endpoints: str = "") -> str:
        listed = ""
        for one in (endpoints or self.endpoints).split("; "):
            name, _, more = one.partition(" ")
            said = f"labels: {{version: {name}}}" + (f", {more}" if more else "")
            listed += f"  - {{address: 127.0.0.1, ports: {{grpc: {world.ports[name]}}}, {said}}}\n"
        text = DOCUMENTS.format(name=self.host, port=world.port, endpoints=listed, policy=self.policy)
        if self.http:
            http = self.http
            for word, subset in (("<all>", ""), ("<a>", ", subset: a"), ("<b>", ", subset: b")):
                http = http.replace(word, f"{{host: {self.host}{subset}}}")
            text += RULES.format(name=self.host, http=http)
        return text
