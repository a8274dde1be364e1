"""Calls, and what an assertion about them says when it fails."""

import pytest

import meshlib
from meshlib.testing import ScriptedMesh, UnexpectedCall


@pytest.fixture
def mesh() -> ScriptedMesh:
    with ScriptedMesh() as made, meshlib.Client() as client:
        made.serve("ratings", 201, version="v2")
        client.post("http://ratings:9080/a?b=c", json={"d": 1}, headers={"X-E": "f"})
        client.put("http://ratings:9080/a", content=b"text")
    return made


def test_a_call_is_what_the_upstream_saw(mesh: ScriptedMesh) -> None:
    first, second = mesh.calls()
    assert (first.method, first.path, first.authority) == ("POST", "/a?b=c", "ratings:9080")
    assert (first.service, first.host, first.port) == ("ratings", "ratings.default.svc.cluster.local", 9080)
    assert (first.json(), second.text, first.outcome, first.attempt) == ({"d": 1}, "text", 201, 1)
    assert (first.headers["x-e"], first.headers["X-E"], "x-f" in first.headers) == ("f", "f", False)
    assert (first.labels, first.mirrored, first.tls, first.at) == ({"version": "v2"}, False, False, 0.0)
    assert repr(first) == "<Call POST ratings:9080/a?b=c → 201 (198.18.0.1:9080)>"


def test_calls_are_chosen_by_what_they_are(mesh: ScriptedMesh) -> None:
    first, second = mesh.calls()
    assert mesh.calls("ratings", path="/a") == [first, second]
    assert mesh.calls("ratings", path="/a?b=c") == [first]
    assert mesh.calls(headers={"x-e": "f"}, json={"d": 1}, labels={"version": "v2"}) == [first]
    assert mesh.calls("ratings", headers={"x-e": None}) == [second]
    assert mesh.calls("ratings", json=1) == []
    assert mesh.calls("ratings", text="text", outcome=201, subset=None) == [second]
    assert mesh.calls("reviews") == []
    with pytest.raises(TypeError, match=r"no call has 'verb'; it has attempt, authority, content"):
        mesh.calls(verb="GET")


def test_assertions_say_what_was_called_and_in_what_it_differs(mesh: ScriptedMesh) -> None:
    mesh.assert_called("ratings")
    mesh.assert_called("ratings", times=1, method="PUT")
    mesh.assert_called("reviews", times=0)
    mesh.assert_not_called("reviews")
    mesh.assert_not_called("ratings", path="/b")
    with pytest.raises(AssertionError) as raised:
        mesh.assert_called("ratings", times=2, method="POST", headers={"x-e": "f"})
    assert str(raised.value).splitlines() == [
        "ratings was called once with method='POST', headers={'x-e': 'f'}; expected: 2 times",
        "  1. <Call POST ratings:9080/a?b=c → 201 (198.18.0.1:9080)>",
        "  2. <Call PUT ratings:9080/a → 201 (198.18.0.1:9080)>: method is 'PUT'",
    ]
    with pytest.raises(AssertionError, match=r"ratings was called 2 times; expected: never"):
        mesh.assert_not_called("ratings")
    with pytest.raises(
        AssertionError, match=r"reviews was not called; expected: at least once\nCalled were: ratings"
    ):
        mesh.assert_called("reviews")


def test_a_call_that_nobody_serves_says_what_to_write() -> None:
    with ScriptedMesh() as mesh, meshlib.Client() as client:
        mesh.serve("ratings")
        with pytest.raises(UnexpectedCall) as raised:
            client.get("http://details:9080/details/0")
        assert str(raised.value) == (
            "GET http://details:9080/details/0 went to details:9080, which nobody serves in this test "
            '(served: ratings). Say what it answers: mesh.serve("details", 200)'
        )
        with pytest.raises(UnexpectedCall):
            mesh.assert_nothing_unexpected()
        mesh.unexpected.clear()
        mesh.assert_nothing_unexpected()
        assert mesh.calls() == []
