"""Meshes to try clients on: the golden cases and the examples, each as documents, servers and askers.

Comments of a golden case say who asks and who serves; see tests/golden/test_golden.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.small_ca import SmallCa

from meshlib.control.graph import Graph, build_graph
from meshlib.control.graph.scope import HTTP_PORT
from meshlib.control.registration import Place, Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds.node import Client, Flavour, Locality

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples/meshlib_bookinfo/mesh"
VIEW = re.compile(r"^# view (\S+): (.*)$", re.MULTILINE)
SERVER = re.compile(r"^# server: (.*)$", re.MULTILINE)
UNKNOWN = "nobody.example:8088"
EDGE_LABELS = (("istio", "ingressgateway"),)
"""Of the gateway that the cases select."""


def write_certificates(folder: Path) -> None:
    """What the cases call /certs."""
    ca = SmallCa()
    issued = ca.issue(dns=["edge.example"])
    (folder / "ca.pem").write_text(ca.pem)
    (folder / "chain.pem").write_text(issued.pem)
    (folder / "key.pem").write_bytes(issued.key_pem)


@dataclass(frozen=True)
class MeshCase:
    """A mesh and one who asks in it."""

    name: str
    text: str
    who: Client

    def graph(self) -> Graph:
        """The mesh."""
        servers = [server(number, found) for number, found in enumerate(SERVER.findall(self.text))]
        return build_graph(documents_in(self.text, f"{self.name}.yaml").documents, servers)

    def targets(self) -> list[str]:
        """`host:port` of everything that can be called, of what its views name, and of nothing known."""
        scope = self.graph().scope(self.who)
        found = {f"{service.host}:{port.number}" for service in scope.services() for port in service.ports}
        found |= {f"{host}:{HTTP_PORT}" for host, _ in scope.virtual_hosts()}
        for _, words in VIEW.findall(self.text):
            asked = parsed(words).get("ask", UNKNOWN).split(",")
            found.update(name for name in asked if not name.startswith("inbound:"))
        return sorted(name for name in found | {UNKNOWN} if "*" not in name and name)


def mesh_cases() -> list[MeshCase]:
    """The examples, and each golden case once for each who asks in it."""
    return [*_examples(), *_golden()]


def _examples() -> Iterator[MeshCase]:
    text = "\n---\n".join(path.read_text() for path in sorted(EXAMPLE.glob("*.y*ml")))
    ports = {"productpage": 1, "details": 2, "reviews": 3, "ratings": 4}
    servers = "".join(
        f"# server: labels=app={app},version=v{number} address=127.0.0.1 ports=http:{port}\n"
        for app, port in ports.items()
        for number in (1, 2, 3)
    )
    yield MeshCase("bookinfo", servers + text, Client(Flavour.MESHLIB))


def _golden() -> Iterator[MeshCase]:
    for path in sorted(TESTS.glob("golden/*/in.yaml")):
        text = path.read_text()
        askers = {asker(parsed(words)): name for name, words in VIEW.findall(text)}
        for who, name in askers.items():
            yield MeshCase(f"{path.parent.name}-{name}", text, who)


def parsed(words: str) -> dict[str, str]:
    """`a=b c` as a mapping."""
    return {key: value for key, _, value in (word.partition("=") for word in words.split())}


def pairs(text: str, separator: str = "=") -> tuple[tuple[str, str], ...]:
    """`a=b,c=d`, sorted."""
    made = [part.partition(separator) for part in text.split(",") if part]
    return tuple(sorted((key, value) for key, _, value in made))


def server(number: int, words: str) -> Registration:
    """Who serves, as a comment says."""
    said = parsed(words)
    return Registration(
        id=f"server-{number}",
        namespace=said.get("namespace", "default"),
        service_account=said.get("account", "default"),
        labels=pairs(said["labels"]),
        address=said["address"],
        ports=tuple((name, int(port)) for name, port in pairs(said.get("ports", "http:9080"), ":")),
        locality=Locality.parse(said.get("locality", "")),
        weight=int(said.get("weight", "1")),
        draining="draining" in said,
        node=said.get("node", ""),
        place=_place(number, said) if "node" in said else None,
    )


def _place(number: int, said: dict[str, str]) -> Place:
    apps = tuple((int(port), int(own)) for port, own in pairs(said.get("apps", ""), ":"))
    return Place(said.get("uid", f"w{number}"), said.get("netns", ""), apps, int(said.get("proxy", "0")))


def asker(said: dict[str, str]) -> Client:
    """Who asks, as a comment says; of no flavour in particular."""
    return Client(
        Flavour.MESHLIB,
        namespace=said.get("namespace", "default"),
        labels=pairs(said.get("labels", "")),
        locality=Locality.parse(said.get("locality", "")),
    )
