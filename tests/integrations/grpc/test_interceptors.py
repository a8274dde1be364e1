"""What is special of calls over a channel of the application's own; the rest is in test_contract."""

import asyncio
from typing import Any

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_callers import INTERCEPTED, calling
from support.grpc_server import PATH, Seen, grpc_server
from support.ports import free_port
from support.telemetry import Told

import meshlib
import meshlib_grpc
from meshlib.bootstrap import bootstrap
from meshlib.xds import pb

RETRIED = {"retry_on": "unavailable", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
HEADERS = {"request_headers_to_add": [{"header": {"key": "x-added", "value": "%PROTOCOL%"}}]}
kinds = pytest.mark.parametrize("kind", INTERCEPTED)


@kinds
def test_nothing_is_held_against_endpoints_of_the_mesh(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port], route={"retry_policy": RETRIED})
    with calling(kind, mesh) as caller:
        server.failing["who"] = 3
        with pytest.raises(grpc.RpcError):
            caller.unary("who", b"")
        answer = caller.unary("who", b"")
        assert (answer.facts.endpoint, answer.facts.cluster) == ("channel", "c")
        assert mesh.ledger.clusters == {}


def test_no_endpoint_of_the_mesh_is_needed(server: Seen) -> None:
    mesh = fake_mesh([])
    # The channel leads somewhere all the same.
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as own:
        channel = grpc.intercept_channel(own, *meshlib_grpc.interceptors("reviews:9080", mesh))
        assert channel.unary_unary(PATH + "who")(b"") == b"v1"


@kinds
def test_no_copy_is_sent(kind: str, server: Seen) -> None:
    with grpc_server("copy") as copy:
        mesh = fake_mesh(
            [server.port], route={"request_mirror_policies": [{"cluster": "m"}]}, mirror_ports=[copy.port]
        )
        with calling(kind, mesh) as caller:
            assert caller.unary("who", b"").messages == [b"v1"]
        assert not copy.calls


def test_messages_are_the_applications_objects(server: Seen) -> None:
    """As of generated stubs: whatever the serialisers take and give."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as own:
        mesh = fake_mesh([server.port])
        channel = grpc.intercept_channel(own, *meshlib_grpc.interceptors("reviews:9080", mesh))
        kind = pb.Struct
        one = kind(fields={"a": {"number_value": 1.5}})
        echo = channel.unary_unary(PATH + "echo", kind.SerializeToString, kind.FromString)
        assert echo(one) == one
        chat = channel.stream_stream(PATH + "chat", kind.SerializeToString, kind.FromString)
        assert list(chat(iter([one, kind(), one]))) == [one, kind(), one]
        text = channel.unary_unary(PATH + "echo", str.encode, bytes.decode)
        assert text.with_call("é")[0] == "é"
        assert text.future("later").result(60) == "later"


def test_what_can_not_be_serialised_is_told_as_grpc_tells_it(server: Seen) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as own:
        channel = grpc.intercept_channel(
            own, *meshlib_grpc.interceptors("reviews:9080", fake_mesh([server.port]))
        )
        bad = channel.unary_unary(PATH + "echo", lambda _: 1 / 0, None)
        with pytest.raises(grpc.RpcError) as raised:
            bad(b"")
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        bad = channel.unary_unary(PATH + "echo", None, lambda _: 1 / 0)
        with pytest.raises(grpc.RpcError) as raised:
            bad(b"")
        assert raised.value.code() is grpc.StatusCode.INTERNAL


def test_interceptors_of_the_application_stand_around_and_below(server: Seen) -> None:
    seen: list[str] = []

    class Noting(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name = name

        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            seen.append(f"{self.name} {dict(details.metadata or ()).get('x-forwarded-proto')}")
            return continuation(details, request)

    server.failing["who"] = 1
    mesh = fake_mesh([server.port], route={"retry_policy": RETRIED})
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as own:
        ours = meshlib_grpc.interceptors("reviews:9080", mesh)
        channel = grpc.intercept_channel(own, Noting("above"), *ours, Noting("below"))
        assert channel.unary_unary(PATH + "who")(b"") == b"v1"
    assert seen == ["above None", "below http", "below http"]


def test_tasks_may_write_one_by_one(server: Seen) -> None:
    async def run() -> None:
        ours = meshlib_grpc.aio_interceptors("reviews:9080", fake_mesh([server.port]))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", interceptors=ours) as channel:
            call = channel.stream_unary(PATH + "total")()
            await call.write(b"a")
            await call.write(b"b")
            await call.done_writing()
            assert await call == b"a,b"
            both = channel.stream_stream(PATH + "chat")()
            await both.write(b"1")
            assert await both.read() == b"1"
            await both.done_writing()
            assert await both.read() is grpc.aio.EOF
            assert await both.code() is grpc.StatusCode.OK

    asyncio.run(run())


@kinds
def test_calls_are_counted(kind: str, server: Seen) -> None:
    told = Told()
    mesh = fake_mesh([server.port])
    mesh.telemetry = told.telemetry(bootstrap({}, service="page", state_dir=""), lambda: mesh.view)
    with calling(kind, mesh) as caller:
        caller.unary("who", b"")
        caller.streamed("count", b"3")
        caller.uploaded("total", [b"a", b"b"])
        caller.both("chat", [b"a", b"b"])
    (count, labels) = next(iter(told.requests()))
    assert (count, labels["request_protocol"], labels["grpc_response_status"]) == (4, "grpc", "0")
    assert len(told.spans) == 4
    told.close()


@pytest.mark.parametrize("target", ["reviews", "http://reviews:9080", "reviews:0"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ValueError, match="is no target of the mesh"):
        meshlib_grpc.interceptors(target, fake_mesh([free_port()]))


def test_no_mesh_knows_the_target(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    mesh.failure = meshlib.ControlUnavailable("nobody answers")
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as own:
        channel = grpc.intercept_channel(own, *meshlib_grpc.interceptors("reviews:9080", mesh))
        with pytest.raises(meshlib.ControlUnavailable):
            channel.unary_unary(PATH + "who")(b"")
        assert not server.calls
