"""What a node is sent, of each golden case and the example, is accepted by a real Envoy."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.envoy_client import envoy
from support.mesh_cases import SERVER, MeshCase, mesh_cases, server, write_certificates
from support.namespaces import Pod, pod
from support.node_mesh import Signed
from support.stage import As, Change, Refusal, Stage

from meshlib.agent.sds import SecretServer
from meshlib.control.ca.authority import Authority
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Place, Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds.kinds import Kind
from meshlib.xds.names import MUTUAL, TLS_MODE_LABEL, TUNNEL_HTTP, TUNNEL_LABEL
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

CASES = list({case.text: case for case in mesh_cases()}.values())
WHO = Client(Flavour.MESHLIB, node="vm1")
TAKES = ((TLS_MODE_LABEL, MUTUAL), (TUNNEL_LABEL, TUNNEL_HTTP))


class Play:
    """The stage, a namespace, and what the cases call /certs."""

    def __init__(self, stage: Stage, inside: Pod, files: Path, roots: bytes) -> None:
        self.stage, self.inside, self.files, self.roots, self.count = stage, inside, files, roots, 0

    def refused(self, case: MeshCase, change: Change = lambda found: found) -> list[Refusal]:
        """Serves a case with two workloads of the node; every NACK."""
        self.count += 1
        text = case.text.replace("/certs/", f"{self.files}/")
        found = [server(number, words) for number, words in enumerate(SERVER.findall(text))]
        first, second, *others = [*found, *(plain(number) for number in (97, 98, 99))]
        captured = replace(
            first, address=self.inside.address, node="vm1", place=Place("a", str(self.inside.path))
        )
        proxied = replace(second, address="127.0.0.2", node="vm1", place=Place("b", proxy_port=1))
        servers = [taking(one) for one in (captured, proxied, *others)]
        documents = documents_in(text, "case.yaml").documents
        graph = build_graph(documents, servers, trust_domain="cluster.local")
        compiler = GraphCompiler(graph, f"{int(time.time() * 1000)}.{self.count}", roots_pem=self.roots)
        self.stage.publish(As(compiler, WHO, change))
        self.stage.wait_for_answers(["node"], (), 30)
        return self.stage.refusals()


def plain(number: int) -> Registration:
    return server(number, f"labels=app=x address=127.0.0.{number} ports=http:9080")


def taking(one: Registration) -> Registration:
    """The same server, which takes mutual TLS and HBONE unless it says otherwise."""
    labels = {**dict(TAKES), **one.label_map}
    return replace(one, labels=tuple(sorted(labels.items())))


@contextmanager
def secrets(folder: Path, authority: Authority) -> Iterator[str]:
    """The socket of an agent."""
    path, started, stop = folder / "sds.sock", threading.Event(), threading.Event()

    async def run() -> None:
        async with SecretServer(Signed(authority), path):  # type: ignore[arg-type]
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(20)
    try:
        yield str(path)
    finally:
        stop.set()
        thread.join(20)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    folder = tmp_path_factory.mktemp("certs")
    write_certificates(folder)
    authority = Authority.open(folder / "ca", trust_domain="cluster.local", now=time.time())
    with (
        Stage() as stage,
        pod() as inside,
        secrets(folder, authority) as socket,
        envoy(stage.address, True, "node", "node", socket),
    ):
        yield Play(stage, inside, folder, authority.roots_pem.encode())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_accepted(play: Play, case: MeshCase) -> None:
    refused = play.refused(case)
    assert not refused, "\n".join([*map(str, refused), case.text])


def without_filters(resource: Resource) -> Resource:
    if resource.kind is not Kind.LISTENER:
        return resource
    message = resource.message()
    if message.filter_chains:
        message.filter_chains[0].filters.add(name="nothing").typed_config.type_url = "type.googleapis.com/x"
    return Resource.of(resource.kind, resource.name, message)


def test_a_bad_listener_is_noticed(play: Play) -> None:
    assert {one.kind for one in play.refused(CASES[0], without_filters)} == {Kind.LISTENER}
