"""A gRPC server comes and goes: found by its callers, healthy, drained without a lost call; asks others."""

import asyncio
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.commands import wait_until
from support.grpc_inbound import KINDS, PATH, Running, serving
from support.policed_mesh import PolicedMesh
from support.ports import free_port

import meshlib
import meshlib_grpc
from meshlib.errors import ControlUnavailable
from meshlib.xds import pb
from meshlib_grpc.inbound.standing import bind

kinds = pytest.mark.parametrize("kind", KINDS)
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  ports: [{port: 9080, name: grpc}]
  selector: {app: reviews}
"""
ASKED = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask}
spec:
  action: CUSTOM
  selector: {matchLabels: {app: reviews}}
  provider: {name: door}
  rules: [{}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: door}
spec:
  hosts: [door.mesh]
  resolution: STATIC
  ports: [{number: 9000, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, ports: {grpc: DOOR}}]
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: door
  envoyExtAuthzGrpc:
    service: door.mesh
    port: 9000
    timeout: 5s
    includeRequestBodyInCheck: {maxRequestBytes: 20, packAsBytes: true}
"""
ALONE = (("grpc.use_local_subchannel_pool", 1),)


def mesh_in(folder: Path, **more: Any) -> meshlib.Mesh:
    who: dict[str, Any] = {"labels": "app=reviews", "service_account": "reviews", "drain": 0.3, **more}
    return meshlib.connect(str(folder), **who)


def stopping(server: Running) -> threading.Thread:
    """Its stop, on a thread."""

    def stop() -> None:
        if server.loop is not None:
            asyncio.run_coroutine_threadsafe(server.server.stop(5), server.loop).result(30)
        else:
            assert server.server.stop(5).wait(30)

    made = threading.Thread(target=stop)
    made.start()
    return made


@kinds
def test_it_is_found_and_leaves_without_a_lost_call(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(SERVICE)
    answers: list[bytes] = []
    with (
        mesh_in(tmp_path) as mesh,
        mesh_in(tmp_path, labels="app=page") as callers,
        serving(kind, mesh, register=True, health=True) as server,
        meshlib_grpc.channel("reviews:9080", callers) as channel,
    ):
        wait_until(lambda: reaches(channel), 10, "the server")
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", ALONE) as direct:
            health = health_pb2_grpc.HealthStub(direct)
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            slow = channel.unary_unary(PATH + "slow").future(b"1")
            assert server.entered.wait(10)
            begun = time.monotonic()
            ending = stopping(server)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            while ending.is_alive() and time.monotonic() < begun + 0.2:
                answers.append(direct.unary_unary(PATH + "echo")(b"still"))
            assert slow.result() == b"late"
            watch.cancel()
        ending.join(30)
        assert time.monotonic() - begun > 0.3
        assert not reaches(channel)
    assert set(answers) == {b"still"}


def begin(server: Running) -> None:
    """Starts it."""
    if server.loop is None:
        server.server.start()
    else:
        asyncio.run_coroutine_threadsafe(server.server.start(), server.loop).result(30)


def reaches(channel: grpc.Channel) -> bool:
    try:
        return bool(channel.unary_unary(PATH + "echo")(b"a") == b"a")
    except grpc.RpcError:
        return False


@kinds
def test_without_a_policy_there_is_no_port(kind: str) -> None:
    mesh = PolicedMesh()
    mesh.failure = ControlUnavailable("it is not there")
    with pytest.raises(ControlUnavailable), serving(kind, mesh):
        pass


@kinds
@pytest.mark.parametrize("name", ["x" * 45, "a b", "a%41b"])
def test_it_serves_wherever_temporary_files_are(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as place:
        (Path(place) / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(Path(place) / name))
        with (
            serving(kind, PolicedMesh()) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}", ALONE) as channel,
        ):
            assert reaches(channel)


class Late(PolicedMesh):
    """Its policy is not known when it is asked for first."""

    def prepare_inbound(self, port: int) -> Any:
        self.failure, failure = None, self.failure
        if failure is not None:
            raise failure
        return super().prepare_inbound(port)


@kinds
def test_a_start_that_waited_in_vain_may_come_again(kind: str) -> None:
    mesh = Late()
    mesh.failure = ControlUnavailable("it is not there")
    with (
        serving(kind, mesh, again=ControlUnavailable) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", ALONE) as channel,
    ):
        assert reaches(channel)


class Taking(PolicedMesh):
    """Somebody else begins to listen at a port while the server waits for its policy."""

    def __init__(self, other: socket.socket) -> None:
        super().__init__()
        self._other = other

    def prepare_inbound(self, port: int) -> Any:
        self._other.listen()
        return super().prepare_inbound(port)


@kinds
def test_nothing_stays_of_a_start_that_fails(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as place, bind("127.0.0.1:0") as other:
        monkeypatch.setattr(tempfile, "tempdir", place)
        taken, free = other.getsockname()[1], free_port()
        with (
            pytest.raises(meshlib.ConfigError, match=f"can't serve at 127.0.0.1, port {taken}: Address"),
            serving(kind, Taking(other), port=[free, taken]),
        ):
            pass
        assert list(Path(place).iterdir()) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free)).close()
        assert "meshlib-grpc-ports" not in [one.name for one in threading.enumerate()]


@kinds
def test_ports_that_are_none(kind: str) -> None:
    mesh = PolicedMesh()
    with serving(kind, mesh) as server:
        with pytest.raises(meshlib.ConfigError, match="add_port comes before start"):
            server.server.add_port("127.0.0.1:0")
        with pytest.raises(meshlib.ConfigError, match="start comes once"):
            begin(server)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", ALONE) as channel:
            assert reaches(channel)
    with pytest.raises(meshlib.ConfigError, match="there is no port"), serving(kind, mesh, port=[]):
        pass
    port = free_port()
    with (
        pytest.raises(meshlib.ConfigError, match=f"can't serve at 127.0.0.1:{port}: it does already"),
        serving(kind, mesh, port=[port, port]),
    ):
        pass


@kinds
def test_a_policy_that_is_lost_later_lets_nobody_in(kind: str) -> None:
    mesh = PolicedMesh()
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        mesh.failure = ControlUnavailable("it is not there")
        call = channel.unary_unary(PATH + "echo").future(b"")
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert call.details() == "no policy is known: it is not there"
        assert server.calls == []


class Authority:
    """Lets in who is not bad, and says who it is."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def check(self, request: Any, _: object) -> Any:
        asked = request.attributes.request.http
        self.bodies.append(asked.raw_body)
        user = asked.headers.get("end-user", "")
        if user != "bad":
            passed = {"headers": [{"header": {"key": "x-user", "value": user}}]}
            told = [{"header": {"key": "x-told", "value": f"{asked.method} {asked.path}"}}]
            return pb.from_dict(
                pb.CheckResponse, {"ok_response": {**passed, "response_headers_to_add": told}}
            )
        denied = {
            "status": {"code": 401},
            "body": "who are you?",
            "headers": [{"header": {"key": "x-why", "value": "bad"}}],
        }
        return pb.from_dict(pb.CheckResponse, {"status": {"code": 16}, "denied_response": denied})


@pytest.fixture
def authority() -> Iterator[tuple[Authority, int]]:
    made, pool = Authority(), ThreadPoolExecutor(2)
    handler = grpc.unary_unary_rpc_method_handler(
        made.check, pb.CheckRequest.FromString, lambda one: one.SerializeToString()
    )
    server = grpc.server(pool)
    service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(0).wait()
    pool.shutdown()


@kinds
def test_somebody_else_is_asked(kind: str, tmp_path: Path, authority: tuple[Authority, int]) -> None:
    asked, port = authority
    (tmp_path / "mesh.yaml").write_text(SERVICE + ASKED.replace("DOOR", str(port)))
    with (
        mesh_in(tmp_path) as mesh,
        serving(kind, mesh) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        given, echo, count = (channel.unary_unary(PATH + name) for name in ("given", "echo", "count"))
        response, call = given.with_call(b"1234", metadata=(("end-user", "jason"),))
        assert dict(json.loads(response)["metadata"])["x-user"] == "jason"
        assert dict(call.initial_metadata()) == {"x-told": f"POST {PATH}given"}
        _, call = echo.with_call(b"", metadata=(("end-user", "jason"),))
        assert dict(call.initial_metadata()) == {"who": "me", "x-told": f"POST {PATH}echo"}
        bad = count.future(b"1", metadata=(("end-user", "bad"),))
        assert (bad.code(), bad.details()) == (grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        assert dict(bad.trailing_metadata()) == {"x-why": "bad"}
        assert asked.bodies == [b"\0\0\0\0\x041234", b"\0\0\0\0\0", b"\0\0\0\0\x011"]
        large = echo.future(b"x" * 100)
        assert (large.code(), large.details()) == (grpc.StatusCode.UNKNOWN, "Payload Too Large")
        # What is a stream nobody can show beforehand, so nobody gets in.
        stream = channel.stream_unary(PATH + "total").future(iter([b"a"]))
        assert stream.code() is grpc.StatusCode.UNKNOWN
        assert "total" not in server.calls
        refuse = channel.unary_unary(PATH + "refuse").future(b"")
        assert (refuse.code(), refuse.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
        assert dict(refuse.initial_metadata())["x-told"] == f"POST {PATH}refuse"
