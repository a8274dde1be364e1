"""Where a response begins and ends: a head before a bad end, and one without the message it should have."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_callers import CALLERS, INTERCEPTED, calling
from support.grpc_peer import GrpcPeer, grpc_peer
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import bootstrap

RETRIED = {
    "retry_policy": {
        "retry_on": "unavailable,reset",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.001s"},
    }
}
kinds = pytest.mark.parametrize("kind", CALLERS)
everywhere = pytest.mark.parametrize("kind", [*CALLERS, *INTERCEPTED])


@pytest.fixture(scope="module")
def started() -> Iterator[GrpcPeer]:
    with grpc_peer() as peer:
        yield peer


@pytest.fixture
def peer(started: GrpcPeer) -> GrpcPeer:
    started.asked.clear()
    return started


@everywhere
@pytest.mark.parametrize("method", ["only0", "head-status0", "head-half-status0"])
def test_a_response_without_its_message_is_none(kind: str, method: str, peer: GrpcPeer) -> None:
    mesh = fake_mesh([peer.port])
    with calling(kind, mesh) as caller:
        for call, asked in ((caller.unary, b""), (caller.uploaded, [b""])):
            with pytest.raises(grpc.RpcError) as raised:
                call(method, asked)  # type: ignore[operator]
            assert raised.value.code() is grpc.StatusCode.INTERNAL
            assert "has no" in raised.value.details() or "has not one" in raised.value.details()
        assert mesh.in_flight() == 0


@kinds
def test_an_empty_message_is_one(kind: str, peer: GrpcPeer) -> None:
    with calling(kind, fake_mesh([peer.port])) as caller:
        assert caller.unary("head-empty-status0", b"").messages == [b""]


@everywhere
def test_metadata_before_a_bad_status_stay_before_it(kind: str, peer: GrpcPeer) -> None:
    mesh = fake_mesh([peer.port], route=RETRIED, answered={"x-rule": "yes"})
    with calling(kind, mesh) as caller:
        for call in (caller.unary, caller.streamed):
            peer.asked.clear()
            with pytest.raises(grpc.RpcError) as raised:
                call("named-wait-status14", b"")
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(error.initial_metadata()) == {"who": "peer", "x-rule": "yes"}
            assert dict(error.trailing_metadata()) == {"why": "told to"}
            assert peer.asked["named-wait-status14"] == 1
            # A status that comes alone is edited with its head.
            with pytest.raises(grpc.RpcError) as raised:
                call("only5", b"")
            assert dict(raised.value.initial_metadata()) == {}
            assert dict(raised.value.trailing_metadata()) == {"x-rule": "yes"}
        assert mesh.in_flight() == 0


@kinds
def test_a_connection_that_breaks_after_a_head_is_told_once(kind: str, peer: GrpcPeer) -> None:
    told = Told()
    mesh = fake_mesh([peer.port], route=RETRIED)
    mesh.telemetry = told.telemetry(bootstrap({}, service="page", state_dir=""), lambda: mesh.view)
    with calling(kind, mesh) as caller:
        for call in (caller.unary, caller.streamed):
            with pytest.raises(meshlib.UpstreamReset) as raised:
                call("named-wait-close", b"")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert (raised.value.flight.attempts, mesh.in_flight()) == (1, 0)
    ((count, labels),) = told.requests()
    assert (count, labels["response_flags"], labels["response_code"]) == (2, "UC", "200")
    told.close()
