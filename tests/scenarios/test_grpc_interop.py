"""gRPC's interoperability cases against our control service, with five ways to make the calls."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from support.commands import control
from support.envoy_client import envoy
from support.grpc_server import grpc_server
from support.interop_cases import CASES
from support.interop_clients import Client, foreign, tasks, threads, through
from support.interop_page import agrees, table
from support.interop_play import Case, Play, World
from support.node_modules import install
from support.ports import free_port

import meshlib

MESH = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
COLUMNS = {"threads": "ours", "tasks": "ours", "grpcio": "grpcio", "grpc-js": "grpc-js", "envoy": "Envoy"}
"""Of the page, by client."""
EXPECTED = table("Routing")


@dataclass
class Theatre:
    """Who answers and who calls."""

    world: World
    clients: dict[str, Client]


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    install()
    base = tmp_path_factory.mktemp("interop")
    folder = base / "mesh"
    folder.mkdir()
    with ExitStack() as stack:
        a, b = (stack.enter_context(grpc_server(name)) for name in "ab")
        world = World(folder, free_port(), a, b)
        (folder / "mesh.yaml").write_text(MESH)
        for case in CASES:
            world.write(case)
        served = stack.enter_context(control(folder))
        node = {"id": "caller", "locality": {"region": "r1"}, "metadata": {"NAMESPACE": "default"}}
        server = {
            "server_uri": served.address,
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
        bootstrap = base / "bootstrap.json"
        bootstrap.write_text(json.dumps({"xds_servers": [server], "node": node}))

        def mesh() -> meshlib.Mesh:
            made = meshlib.connect(served.address, allow_plaintext=True, state_dir="", locality="r1")
            return stack.enter_context(made)

        clients = {
            "threads": stack.enter_context(threads(mesh())),
            "tasks": stack.enter_context(tasks(mesh())),
            "grpcio": stack.enter_context(foreign("python", bootstrap)),
            "grpc-js": stack.enter_context(foreign("node", bootstrap)),
        }
        stack.enter_context(envoy(served.address, True, region="r1"))
        clients["envoy"] = stack.enter_context(through(world.port))
        yield Theatre(world, clients)
        assert served.refusals() == []


@pytest.mark.parametrize("client", COLUMNS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.host)
def test_a_case(case: Case, client: str, theatre: Theatre) -> None:
    found = case.come(Play(case, theatre.world, theatre.clients[client]))
    assert agrees(EXPECTED[case.name][COLUMNS[client]], found), found


def test_the_page_tells_of_these_cases() -> None:
    assert list(EXPECTED) == [case.name for case in CASES]


def test_the_page_says_why_ours_differ_from_envoy() -> None:
    assert [name for name, row in EXPECTED.items() if row["ours"] != row["Envoy"] and not row["why"]] == []


@pytest.mark.parametrize(
    ("cell", "found", "agree"),
    [
        ("answered", "answered", True),
        ("answered", "UNAVAILABLE", False),
        ("A or B", "B", True),
        ("A after 0.3 s", "A after 0.30 s", True),
        ("A after 0.3 s", "A after 0.27 s", False),
        ("A after 0.3 s", "A after 1.31 s", False),
        ("A after 0.3 s", "B after 0.30 s", False),
        ("A after 0.3 s", "A", False),
        ("A after 0.4 to 1.3 s", "A after 1.20 s", True),
        ("A or B after 0.4 to 1.3 s", "B after 2.31 s", False),
    ],
)
def test_a_cell_agrees(cell: str, found: str, agree: bool) -> None:
    assert agrees(cell, found) is agree
