"""Faults on demand, and the mesh that is the process's default one for the length of a test."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import meshlib
from meshlib.core.request import Peer
from meshlib.errors import Closed, ConfigError, UpstreamReset
from meshlib.testing import Failure, ScriptedMesh, UnexpectedCall

SUBSETS = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    match: [{uri: {prefix: /own}}]
    route: [{destination: {host: ratings, subset: v1}}]
  - route:
    - {destination: {host: ratings, subset: v1}, weight: 50}
    - {destination: {host: ratings, subset: v2}, weight: 50}
    retries: {attempts: 1, retryOn: 5xx}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec:
  host: ratings
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""
URL = "http://ratings:9080/"


@pytest.fixture
def client() -> Iterator[meshlib.Client]:
    with meshlib.Client() as made:
        yield made


def status(client: meshlib.Client, url: str = URL) -> tuple[int, str]:
    answer = client.get(url)
    return answer.status_code, answer.extensions["meshlib"].flag


def test_an_abort_is_the_share_that_it_says(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings")
    fault = mesh.fault("ratings", abort=503, percent=50)
    mesh.dice.load(0.49, 0.5)
    assert [status(client), status(client)] == [(503, "FI"), (200, "-")]
    mesh.assert_called("ratings", times=1)
    fault.heal()
    assert status(client) == (200, "-")


def test_a_delay_takes_no_time_and_an_abort_may_follow(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings")
    with mesh.fault("ratings", delay="4s", abort=500) as fault:
        assert repr(fault) == "<Fault of ratings>"
        assert status(client) == (500, "DI,FI")
        assert mesh.clock() == 4.0
    assert repr(fault) == "<Fault of ratings, healed>"
    assert status(client) == (200, "-")


def test_grpc_calls_are_aborted_in_their_words(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings")
    with mesh.fault("ratings", abort="UNAVAILABLE"):
        answer = client.post(URL, headers={"content-type": "application/grpc"})
    assert (answer.status_code, answer.headers["grpc-status"]) == (200, "14")


def test_a_fault_is_of_one_subset_and_beats_that_of_the_rules(
    mesh: ScriptedMesh, client: meshlib.Client
) -> None:
    mesh.apply(SUBSETS)
    mesh.serve("ratings")
    assert status(client, URL + "own") == (418, "FI")
    with mesh.fault("ratings", abort=503, subset="v2"), mesh.fault("ratings", abort=502, subset="v1"):
        mesh.dice.load(0.1, 0.9)
        assert [status(client)[0], status(client)[0]] == [502, 503]
        assert status(client, URL + "own") == (502, "FI")
    assert status(client, URL + "own") == (418, "FI")
    mesh.assert_not_called("ratings")


def test_what_the_upstream_answers_is_tried_again(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(SUBSETS)
    mesh.serve("ratings")
    mesh.fault("ratings", answer=503, percent=50)
    # The subset, the first try, the back-off, the search for another endpoint (in vain), the second try.
    mesh.dice.load(0.1, 0.49, 0.0, *[0.5] * 7)
    assert status(client) == (200, "-")
    assert [call.outcome for call in mesh.calls()] == [503, 200]
    mesh.heal()
    mesh.fault("ratings", answer=ConnectionResetError)
    with pytest.raises(UpstreamReset):
        client.get(URL)
    with mesh.fault("ratings", answer=200):  # the last one counts
        assert status(client) == (200, "-")
    mesh.heal("ratings.default.svc")
    assert status(client) == (200, "-")


def test_of_one_service_only_its_own_faults_are_healed(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings")
    mesh.serve("reviews")
    mesh.fault("ratings", abort=503)
    mesh.fault("reviews", abort=503)
    mesh.heal("ratings")
    assert [status(client)[0], status(client, "http://reviews/")[0]] == [200, 503]
    mesh.heal()
    assert status(client, "http://reviews/")[0] == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"abort": 99},
        {"abort": True},
        {"abort": "unavailable"},
        {"abort": 503, "percent": 101},
        {"abort": 503, "percent": -1},
        {"delay": "soon"},
        {"delay": 0},
        {"answer": "503"},
    ],
)
def test_a_fault_that_is_none_is_refused(mesh: ScriptedMesh, wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"allowed is|a fault is"):
        mesh.fault("ratings", **wrong)


def test_clients_of_the_process_find_the_mesh_of_each_test() -> None:
    with meshlib.Client() as client:
        for number in (200, 201):
            with ScriptedMesh() as mesh:
                assert meshlib.default() is mesh
                mesh.serve("ratings", number)
                assert status(client) == (number, "-")
            assert mesh.closed
            assert "closed; 0 documents, serves ratings, 1 calls" in repr(mesh)


async def test_tasks_find_the_mesh_of_each_test() -> None:
    async with meshlib.AsyncClient() as client:
        for number in (200, 201):
            with ScriptedMesh() as mesh:
                mesh.serve("ratings", number)
                assert (await client.get(URL)).status_code == number


def test_the_default_before_is_put_back() -> None:
    before = meshlib._shared.get("mesh")
    with ScriptedMesh() as outer:
        with ScriptedMesh() as inner:
            assert meshlib.default() is inner
        assert meshlib.default() is outer
    assert meshlib._shared.get("mesh") is before


def test_a_mesh_that_was_given_stays_closed() -> None:
    with ScriptedMesh() as mesh, meshlib.Client(mesh=mesh) as client:
        mesh.serve("ratings")
        assert status(client)[0] == 200
        mesh.close()
        with pytest.raises(Closed):
            client.get(URL)


def test_the_end_lets_go_what_is_held() -> None:
    got: list[int] = []
    with ScriptedMesh() as mesh, meshlib.Client() as client:
        mesh.serve("ratings")
        held = mesh.hold("ratings")
        thread = threading.Thread(target=lambda: got.append(status(client)[0]))
        thread.start()
        held.wait()
    thread.join(5)
    assert got == [200]


async def test_connections_are_refused_in_words(mesh: ScriptedMesh) -> None:
    with pytest.raises(ConfigError, match="db:5432: this mesh sends requests only"):
        meshlib.create_connection(("db", 5432))
    with pytest.raises(ConfigError, match="db:5432: this mesh sends requests only"):
        await meshlib.open_connection("db", 5432)


def test_a_peer_is_whom_the_middlewares_are_shown(mesh: ScriptedMesh) -> None:
    assert mesh.peer() == Peer(("198.18.0.0", 1), ("198.18.0.0", 80))
    named = mesh.peer("bookinfo", port=9080)
    assert (named.principal, named.local[1], named.tls) == (
        *("spiffe://cluster.local/ns/default/sa/bookinfo", 9080, True),
    )
    mesh.apply("apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\ntrustDomain: example.org")
    assert mesh.peer("a", "b").principal == "spiffe://example.org/ns/b/sa/a"


def test_every_public_name_is_there() -> None:
    for name in meshlib.testing.__all__:
        assert getattr(meshlib.testing, name).__doc__
    assert set(meshlib.testing.__all__) <= set(dir(meshlib.testing))
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = meshlib.testing.Nothing
    assert Failure.RESET.value


@pytest.mark.parametrize("name", ["nobody", "nobody.shop.svc", "nobody.example"])
def test_what_is_aborted_needs_nobody_who_serves(
    mesh: ScriptedMesh, client: meshlib.Client, name: str
) -> None:
    mesh.dice.load(0.1, 0.9)
    with mesh.fault(name, abort=418, percent=50):
        assert client.get(f"http://{name}/").status_code == 418
        with pytest.raises(UnexpectedCall, match=f'mesh.serve\\("{name.removesuffix(".svc")}", 200\\)'):
            client.get(f"http://{name}/")
    mesh.unexpected.clear()
