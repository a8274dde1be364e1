"""What the compiler makes of every golden case and example is accepted by every client, over real ADS.

Clients: gRPC's own of Python and Node.js, Envoy in both variants of the protocol, and our library.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import wait_until
from support.envoy_client import envoy
from support.mesh_cases import MeshCase, mesh_cases
from support.node_modules import install
from support.small_ca import SmallCa
from support.stage import As, Change, Refusal, Stage

from meshlib import Mesh
from meshlib.bootstrap import bootstrap
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.dataplane.network import SOCKETS
from meshlib.errors import RefusedResource
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

HERE = Path(__file__).parent
COMMANDS = {
    "grpcio": [sys.executable, str(HERE.parent / "support/grpcio_channels.py")],
    "grpc-js": ["node", str(HERE / "grpcjs/channels.js")],
}
ENVOYS = {"proxy-sotw": False, "proxy-delta": True}
"""Node ids, and whether the protocol is the incremental one."""
CASES = [case for case in mesh_cases() if not case.name.startswith("gateway")]
"""What is for gateways alone, no client here is sent; see test_gateway_nacks.py."""


class Channels:
    """A process that holds gRPC channels."""

    def __init__(self, name: str, bootstrap: Path) -> None:
        """`bootstrap` is gRPC's."""
        self.name = name
        self._bootstrap = bootstrap
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            COMMANDS[self.name],
            env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(self._bootstrap)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def open(self, targets: Iterable[str]) -> None:
        """Opens these and closes those before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(list(targets)), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "open\n"

    def begin_anew(self) -> None:
        """Another process in place of this one."""
        self.close()
        self._process = self._start()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def channels(name: str, address: str, folder: Path) -> Iterator[Channels]:
    server = {"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"xds_servers": [server], "node": {"id": name, "locality": {}}}))
    made = Channels(name, path)
    try:
        yield made
    finally:
        made.close()


class Play:
    """The stage and all who look at it."""

    def __init__(self, stage: Stage, channels: list[Channels], files: Path) -> None:
        """`files` is what the cases call /certs: an Envoy refuses a file that is not there."""
        self.files = files
        self.stage = stage
        self.channels = channels
        self.count = 0

    def refused(self, case: MeshCase, change: Change = lambda found: found) -> list[Refusal]:
        """Serves a case to everybody; every NACK."""
        self.count += 1
        case = replace(case, text=case.text.replace("/certs/", f"{self.files}/"))
        compiler = GraphCompiler(case.graph(), f"{int(time.time() * 1000)}.{self.count}")
        targets = case.targets()
        self.stage.publish(As(compiler, case.who, change))
        for one in self.channels:
            one.open(targets)
        settings = bootstrap({}, allow_plaintext=True, control=self.stage.address)
        with Mesh(settings, network=SOCKETS) as mesh:  # which looks no names up
            ours = []
            for target in targets:
                try:
                    mesh.prepare(target)
                except RefusedResource as error:
                    ours.append(Refusal("meshlib", Kind.LISTENER, str(error)))
            try:
                self.stage.wait_for_answers([*COMMANDS, *ENVOYS], targets, 10)
            except AssertionError:
                self.begin_anew(targets)
                self.stage.wait_for_answers([*COMMANDS, *ENVOYS], targets, 60)
        return [*self.stage.refusals(), *ours]

    def begin_anew(self, targets: list[str]) -> None:
        """Processes that have seen nothing of the case before.

        grpc-js-xds 1.14 keeps what it knew of a cluster that a response leaves out, tells its watchers that
        it is gone, and does not tell them when the same comes again (`cachedResource` in its `xds-client`).
        A case that follows another makes it so now and then, presumably where names that it cancels and asks
        for again cross with a response. What is asked here is who refuses what.
        """
        for one in self.channels:
            one.begin_anew()
            one.open(targets)


def certificates(folder: Path) -> Path:
    """A CA, and a certificate and key of it."""
    ca = SmallCa()
    issued = ca.issue("spiffe://cluster.local/ns/default/sa/client")
    (folder / "ca.pem").write_text(ca.pem)
    (folder / "chain.pem").write_text(issued.pem)
    (folder / "key.pem").write_bytes(issued.key_pem)
    return folder


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    install()
    folder = tmp_path_factory.mktemp("play")
    with ExitStack() as stack:
        stage = stack.enter_context(Stage())
        open_channels = [stack.enter_context(channels(name, stage.address, folder)) for name in COMMANDS]
        for name, delta in ENVOYS.items():
            stack.enter_context(envoy(stage.address, delta, name))
        yield Play(stage, open_channels, certificates(folder))
        assert stage.late() == []


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_client_accepts(play: Play, case: MeshCase) -> None:
    refused = play.refused(case)
    assert not refused, "\n".join([*map(str, refused), case.text])


def of_no_known_place(resource: Resource) -> Resource:
    """Clusters whose endpoints come from nowhere, and that choose among them nevertheless."""
    if resource.kind is not Kind.CLUSTER:
        return resource
    message = resource.message()
    message.ClearField("eds_cluster_config")
    message.type, message.lb_policy = "ORIGINAL_DST", "RING_HASH"
    return Resource.of(resource.kind, resource.name, message)


def test_a_bad_resource_is_refused_by_every_client(play: Play) -> None:
    refused = play.refused(CASES[0], of_no_known_place)
    assert {of.client.partition("~")[0] for of in refused} == {"meshlib", *COMMANDS, *ENVOYS}
    assert {of.kind for of in refused if of.client != "meshlib"} == {Kind.CLUSTER}
    assert play.refused(CASES[0]) == []
    wait_until(lambda: play.stage.refusing() == [], 20, "everybody to take what is good again")
    assert play.stage.refusals() == []
