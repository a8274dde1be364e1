"""What is told of gRPC's calls: by a real SDK, with a real server, for both channels."""

from collections.abc import Iterator

import grpc
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.grpc_callers import CALLERS, calling
from support.grpc_server import Seen, grpc_server
from support.ports import free_port
from support.telemetry import Told

from meshlib.bootstrap import bootstrap

kinds = pytest.mark.parametrize("kind", CALLERS)


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Seen]:
    with grpc_server() as seen:
        yield seen


def telling(port: int, told: Told) -> FakeMesh:
    mesh = fake_mesh([port])
    mesh.telemetry = told.telemetry(bootstrap({}, service="page", state_dir=""), lambda: mesh.view)
    return mesh


def counted(told: Told) -> list[tuple[int, str, str, str, str]]:
    """How many calls: their protocol, HTTP status, gRPC status and flags."""
    names = ("request_protocol", "response_code", "grpc_response_status", "response_flags")
    return [(number, *(labels[name] for name in names)) for number, labels in told.requests()]  # type: ignore[misc]


@kinds
def test_calls_are_counted_with_their_status(kind: str, server: Seen, told: Told) -> None:
    with calling(kind, telling(server.port, told)) as caller:
        caller.unary("who", b"")
        assert counted(told) == [(1, "grpc", "200", "0", "-")]
        caller.streamed("count", b"3")
        caller.uploaded("total", [b"a", b"b"])
        caller.both("chat", [b"a", b"b"])
        assert counted(told) == [(4, "grpc", "200", "0", "-")]
        for call in (lambda: caller.unary("status", b"5 x"), lambda: caller.streamed("broken", b"")):
            with pytest.raises(grpc.RpcError):
                call()
    assert counted(told)[1:] == [(1, "grpc", "200", "5", "-"), (1, "grpc", "200", "15", "-")]
    assert len(told.spans) == 6


@kinds
def test_calls_that_come_to_nothing_are_counted(kind: str, server: Seen, told: Told) -> None:
    with calling(kind, telling(free_port(), told)) as caller, pytest.raises(grpc.RpcError):
        caller.unary("who", b"")
    assert [one[4] for one in counted(told)] == ["UF"]
    with calling(kind, telling(server.port, told)) as caller:
        caller.first_and_cancel("forever", b"")
    assert [one[4] for one in counted(told)] == ["UF", "DC"]
