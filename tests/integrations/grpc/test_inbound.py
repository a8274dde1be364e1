"""A gRPC server in the mesh, for threads and tasks: who gets in, what handlers are given, how calls end."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.grpc_inbound import KINDS, PATH, Running, serving, serving_of_grpcs, until_left
from support.policed import PORT

import meshlib
import meshlib_grpc

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  selector: {matchLabels: {app: reviews}}
  rules:
  - to: [{operation: {paths: ["/test.Service/admin*", "/test.Service/total", "/test.Service/forever"]}}]
    when: [{key: "request.headers[end-user]", notValues: [root]}]
"""
ROOT = (("end-user", "root"),)

kinds = pytest.mark.parametrize("kind", KINDS)


@contextlib.contextmanager
def mesh_of(folder: Path, documents: str = POLICY) -> Iterator[meshlib.Mesh]:
    """The mesh of `reviews`, in this process."""
    (folder / "mesh.yaml").write_text(documents)
    who: dict[str, Any] = {"labels": "app=reviews", "service_account": "reviews"}
    with meshlib.connect(str(folder), **who) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[meshlib.Mesh]:
    with mesh_of(tmp_path_factory.mktemp("mesh")) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS)
def started(request: pytest.FixtureRequest, mesh: meshlib.Mesh) -> Iterator[Running]:
    with serving(request.param, mesh) as found:
        yield found


@pytest.fixture
def server(started: Running) -> Running:
    started.calls.clear()
    started.left.clear()
    started.entered.clear()
    return started


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as made:
        yield made


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def test_four_kinds_of_calls(server: Running, channel: grpc.Channel) -> None:
    assert channel.unary_unary(PATH + "echo")(b"hello", timeout=20) == b"hello"
    assert list(channel.unary_stream(PATH + "count")(b"3")) == [b"0", b"1", b"2"]
    assert list(channel.unary_stream(PATH + "count")(b"0")) == []
    upload = channel.stream_unary(PATH + "total")
    assert upload(iter([b"a", b"", b"c"]), metadata=ROOT) == b"a,,c"
    assert upload(iter([]), metadata=ROOT) == b""
    both = channel.stream_stream(PATH + "chat")
    assert list(both(iter([b"1", b"", b"3"]))) == [b"1", b"", b"3"]
    assert server.calls == ["echo", "count", "count", "total", "total", "chat"]


def test_handlers_on_threads_and_with_reader_and_writer_in_a_server_for_tasks(mesh: meshlib.Mesh) -> None:
    with serving("tasks", mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert channel.unary_unary(PATH + "echo_on_thread")(b"hello") == b"hello"
        assert list(channel.unary_stream(PATH + "count_on_thread")(b"2")) == [b"0", b"1"]
        assert channel.stream_unary(PATH + "total_on_thread")(iter([b"a", b"b"])) == b"a,b"
        assert list(channel.stream_stream(PATH + "chat_on_thread")(iter([b"a", b"b"]))) == [b"a", b"b"]
        told = json.loads(channel.unary_unary(PATH + "given_on_thread")(b"", metadata=(("x-envoy-a", "1"),)))
        assert (told["principal"], "x-envoy-a" in dict(told["metadata"])) == ("", False)
        error = refused(lambda: channel.unary_unary(PATH + "refuse_on_thread")(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
        assert list(channel.unary_stream(PATH + "written")(b"3")) == [b"0", b"1", b"2"]
        assert list(channel.stream_stream(PATH + "read")(iter([b"a", b"b"]))) == [b"a", b"b"]
        error = refused(lambda: channel.unary_unary(PATH + "admin_on_thread")(b""))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("method", ["total", "forever", "admin"])
def test_who_is_denied_reaches_no_code_of_the_application(
    method: str, server: Running, channel: grpc.Channel
) -> None:
    calls = {
        "total": lambda: channel.stream_unary(PATH + "total")(iter([b"bad"])),
        "forever": lambda: list(channel.unary_stream(PATH + "forever")(b"bad")),
        "admin": lambda: channel.unary_unary(PATH + "admin")(b"bad"),
    }
    error = refused(calls[method])
    assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
    assert list(error.trailing_metadata()) == []
    assert server.calls == []


def test_that_a_method_is_not_there_is_told_to_who_may_ask(channel: grpc.Channel) -> None:
    for method in ("nothing", "admin"):
        error = refused(lambda method=method: channel.unary_unary(PATH + method)(b"", metadata=ROOT))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    assert (
        refused(lambda: channel.unary_unary(PATH + "admin")(b"")).code() is grpc.StatusCode.PERMISSION_DENIED
    )


@pytest.mark.parametrize("path", ["/test.Service//echo", "/test.Service/./echo", "/x/../test.Service/echo"])
def test_a_path_that_is_judged_as_another_is_no_method(
    path: str, server: Running, channel: grpc.Channel
) -> None:
    assert refused(lambda: channel.unary_unary(path)(b"")).code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.calls == []


def test_what_a_handler_is_given(server: Running, channel: grpc.Channel) -> None:
    sent = (
        ("x-envoy-peer-metadata", "lies"),
        ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/root"),
        ("x_envoy_original_path", "/a"),
        ("end-user", "jason"),
        ("key-bin", b"\xfe\x00"),
        ("x-request-id", "b7a1c7a2-0000-4000-8000-000000000001"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("two", "1"),
        ("two", "2"),
    )
    told = json.loads(channel.unary_unary(PATH + "given")(b"", timeout=20, metadata=sent))
    assert told["principal"] == ""
    assert told["peer"].startswith("ipv4:127.0.0.1:")
    kept = [pair for pair in told["metadata"] if pair[0] != "user-agent"]
    assert sorted(kept) == [
        ["end-user", "jason"],
        ["key-bin", "bytes fe00"],
        ["traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        ["two", "1"],
        ["two", "2"],
        ["x-request-id", "b7a1c7a2-0000-4000-8000-000000000001"],
    ]
    assert told["handed"] == {
        "end-user": "jason",
        "x-request-id": "b7a1c7a2-0000-4000-8000-000000000001",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    assert 10 < told["left"] < 21  # gRPC rounds it up


def test_a_call_without_a_deadline_hands_none_on(channel: grpc.Channel) -> None:
    told = json.loads(channel.unary_unary(PATH + "given")(b""))
    assert told["left"] is None
    assert "x-request-id" in told["handed"]


def test_how_a_handler_ends_its_call(channel: grpc.Channel) -> None:
    response, call = channel.unary_unary(PATH + "echo").with_call(b"a")
    assert (response, dict(call.initial_metadata()), dict(call.trailing_metadata())) == (
        b"a",
        {"who": "me"},
        {"end": "here"},
    )
    error = refused(lambda: channel.unary_unary(PATH + "refuse")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
    assert dict(error.trailing_metadata()) == {"why": "so"}
    error = refused(lambda: channel.unary_unary(PATH + "coded")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.ALREADY_EXISTS, "there already")
    error = refused(lambda: channel.unary_unary(PATH + "fail")(b""))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "by zero" in error.details()
    call = channel.unary_stream(PATH + "broken")(b"")
    assert next(call) == b"0"
    error = refused(lambda: next(call))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "in the middle")


def test_messages_that_are_none(started: Running, channel: grpc.Channel) -> None:
    """As each of gRPC's servers has it."""
    echo, chat = channel.unary_unary(PATH + "echo"), channel.stream_stream(PATH + "chat")
    for message, said in (
        (b"bad", "Exception deserializing request!"),
        (b"unwritable", "Failed to serialize"),
    ):
        for call in (lambda m=message: echo(m), lambda m=message: list(chat(iter([b"a", m])))):
            error = refused(call)
            if isinstance(started.server, meshlib_grpc.Server):
                assert error.code() is grpc.StatusCode.INTERNAL
                assert said in error.details()
            else:
                assert error.code() is grpc.StatusCode.UNKNOWN
                assert "ValueError" in error.details()


def test_a_caller_that_leaves(server: Running, channel: grpc.Channel) -> None:
    call = channel.unary_stream(PATH + "forever")(b"", metadata=ROOT)
    assert next(call) == b"0"
    call.cancel()
    until_left(server)
    server.left.clear()
    call = channel.unary_unary(PATH + "slow").future(b"20", timeout=1)
    assert server.entered.wait(20)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until_left(server)


def test_many_at_once_and_large_messages(server: Running, channel: grpc.Channel) -> None:
    echo = channel.unary_unary(PATH + "echo")
    asked = [b"%d" % number * 20_000 for number in range(40)]
    futures = [echo.future(one) for one in asked]
    assert [one.result() for one in futures] == asked


@kinds
def test_a_server_that_takes_connections_itself(kind: str, mesh: meshlib.Mesh) -> None:
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    with (
        serving_of_grpcs(kind, make(mesh, PORT)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        assert channel.unary_unary(PATH + "echo")(b"hello") == b"hello"
        told = json.loads(channel.unary_unary(PATH + "given")(b"", metadata=(("x-envoy-a", "lies"),)))
        assert "x-envoy-a" not in dict(told["metadata"])
        error = refused(lambda: channel.unary_stream(PATH + "forever")(b"").result())
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@kinds
def test_a_port_that_is_not_said(kind: str, mesh: meshlib.Mesh, caplog: Any) -> None:
    """Nobody is let in: which policy holds is not known."""
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    with (
        serving_of_grpcs(kind, make(mesh)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        assert refused(lambda: channel.unary_unary(PATH + "echo")(b"")).code() is grpc.StatusCode.UNKNOWN
        assert server.calls == []
    assert "gRPC does not say at which port it serves" in caplog.text


@kinds
def test_who_does_not_come_through_the_port_is_nobody(kind: str, mesh: meshlib.Mesh) -> None:
    with serving(kind, mesh) as server:
        folder = server.server._passage._folder
        with grpc.insecure_channel(f"unix:{folder}/grpc") as channel:
            error = refused(lambda: channel.unary_unary(PATH + "echo")(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
        assert server.calls == []
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@kinds
def test_connections_are_forgotten_when_they_end(kind: str, mesh: meshlib.Mesh) -> None:
    from support.commands import wait_until

    with serving(kind, mesh) as server:
        met = server.server._passage.met
        for _ in range(3):
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                assert channel.unary_unary(PATH + "echo")(b"") == b""
                assert len(met) == 1
            wait_until(lambda: len(met) == 0, 10, "the end")
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while stranger.recv(1000):
                pass
        wait_until(lambda: len(met) == 0, 10, "the end")


def test_grpcs_own_ports_are_refused(mesh: meshlib.Mesh) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = meshlib_grpc.server(ThreadPoolExecutor(1), mesh=mesh, register=False)
    with pytest.raises(meshlib.ConfigError, match="add_port"):
        server.add_insecure_port("127.0.0.1:0")
    with pytest.raises(meshlib.ConfigError, match="add_port"):
        server.add_secure_port("127.0.0.1:0", None)
    for address in ("", "9080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "unix:/tmp/x:1", ":9080"):
        with pytest.raises(meshlib.ConfigError, match="host:port"):
            server.add_port(address)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(meshlib.ConfigError, match="in use"):
        server.add_port(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(meshlib.ConfigError, match="there is no port"):
        server.start()
    server.add_port("127.0.0.1:0")
    server.start()
    with pytest.raises(meshlib.ConfigError, match="before start"):
        server.add_port("127.0.0.1:0")
    assert server.stop(None).wait(10)
