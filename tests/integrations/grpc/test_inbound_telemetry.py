"""What is told of calls that a gRPC server of the mesh was sent: by a real SDK, and in its access log."""

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from support.commands import wait_until
from support.grpc_inbound import KINDS, PATH, serving
from support.policed_mesh import OWN, PolicedMesh
from support.telemetry import Told

kinds = pytest.mark.parametrize("kind", KINDS)
DENY = "deny(total):\n  rules: [{to: [{operation: {paths: [/test.Service/total]}}]}]\n"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


def ended(call: Any) -> grpc.StatusCode:
    """How it ended, whatever it was."""
    found: grpc.StatusCode = call.code()
    return found


def counted(told: Told) -> set[tuple[int, str, str, str, str]]:
    """How many calls: their HTTP status, gRPC status, flags, and where it was told."""
    names = ("response_code", "grpc_response_status", "response_flags", "reporter")
    return {(number, *(labels[name] for name in names)) for number, labels in told.requests()}  # type: ignore[misc]


@kinds
def test_calls_are_counted_with_their_status(kind: str, told: Told) -> None:
    mesh = PolicedMesh(DENY, told=told)
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        one, out = channel.unary_unary, channel.unary_stream
        up, both = channel.stream_unary, channel.stream_stream
        one(PATH + "echo")(b"four")
        list(out(PATH + "count")(b"3"))
        list(both(PATH + "chat")(iter([b"a", b"b"])))
        assert ended(one(PATH + "refuse").future(b"")) is grpc.StatusCode.NOT_FOUND
        assert ended(one(PATH + "coded").future(b"")) is grpc.StatusCode.ALREADY_EXISTS
        assert ended(one(PATH + "fail").future(b"")) is grpc.StatusCode.UNKNOWN
        broken = out(PATH + "broken")(b"")
        with pytest.raises(grpc.RpcError):
            list(broken)
        assert ended(broken) is grpc.StatusCode.DATA_LOSS
        assert ended(one(PATH + "nothing").future(b"")) is grpc.StatusCode.UNIMPLEMENTED
        assert ended(up(PATH + "total").future(iter([b""]))) is grpc.StatusCode.PERMISSION_DENIED
        expected = {
            (3, "200", "0", "-", "destination"),
            (1, "200", "5", "-", "destination"),
            (1, "200", "6", "-", "destination"),
            (1, "200", "2", "-", "destination"),
            (1, "200", "15", "-", "destination"),
            (1, "200", "12", "-", "destination"),
            (1, "200", "7", "-", "destination"),
        }
        wait_until(lambda: counted(told) == expected, 10, "all calls")
    labels = told.requests()[0][1]
    assert labels["request_protocol"] == "grpc"
    assert labels["destination_service"] == "httpbin.foo.svc.cluster.local"
    assert labels["connection_security_policy"] == "none"


@kinds
def test_a_caller_that_leaves_is_told_of(kind: str, told: Told) -> None:
    mesh = PolicedMesh(told=told)
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_stream(PATH + "forever")(b"")
        assert next(call) == b"0"
        call.cancel()
        wait_until(lambda: [one[3] for one in counted(told)] == ["DC"], 10, "the call")
        assert ended(channel.unary_unary(PATH + "slow").future(b"20", timeout=0.5)) is (
            grpc.StatusCode.DEADLINE_EXCEEDED
        )
        wait_until(lambda: sum(one[0] for one in counted(told)) == 2, 10, "the call")
        assert {one[3] for one in counted(told)} == {"DC"}


@kinds
def test_messages_count_with_their_frames(kind: str, told: Told) -> None:
    mesh = PolicedMesh(told=told)
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        channel.unary_unary(PATH + "echo")(b"")
        wait_until(lambda: len(told.spans) == 1, 10, "the call")
        before = {
            name: told.metrics()[name][0].sum for name in ("istio_request_bytes", "istio_response_bytes")
        }
        channel.unary_unary(PATH + "echo")(b"1234")
        list(channel.unary_stream(PATH + "count")(b"10"))
        wait_until(lambda: len(told.spans) == 3, 10, "the calls")
    messages = {span.attributes["request_size"]: span.attributes["response_size"] for span in told.spans}  # type: ignore[index]
    assert messages == {"5": "5", "9": "9", "7": "60"}
    assert before.keys() == {"istio_request_bytes", "istio_response_bytes"}


@kinds
def test_a_call_has_a_span_and_what_its_handler_does_is_below_it(
    kind: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = PolicedMesh(told=told)
    seen: list[Any] = []
    real = trace.get_current_span
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        import support.grpc_inbound as handlers

        def noting(context: Any) -> bytes:
            seen.append((real().get_span_context().span_id, threading.get_ident()))
            return b""

        monkeypatch.setattr(handlers, "given", noting)
        traced = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)
        channel.unary_unary(PATH + "given")(b"", metadata=traced)
        wait_until(lambda: len(told.spans) == 1, 10, "the span")
        assert real() is trace.INVALID_SPAN
    (span,) = told.spans
    assert span.kind is SpanKind.SERVER
    assert format(span.context.trace_id, "032x") == TRACE  # type: ignore[union-attr]
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == "00f067aa0ba902b7"
    assert [one[0] for one in seen] == [span.context.span_id]  # type: ignore[union-attr]
    assert str(span.attributes["http.url"]).endswith(PATH + "given")  # type: ignore[index]


@kinds
def test_a_line_of_the_access_log(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    mesh = PolicedMesh(DENY)
    mesh.bootstrap = replace(mesh.bootstrap, access_log=str(path))
    from meshlib.dataplane.telemetry.watch import Telemetry

    mesh.telemetry = Telemetry(mesh.bootstrap, lambda: mesh.view, lambda: OWN)
    with serving(kind, mesh) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        channel.unary_unary(PATH + "echo")(b"four", metadata=(("x-request-id", "r1"),))
        call = channel.stream_unary(PATH + "total").future(iter([b""]))
        assert ended(call) is grpc.StatusCode.PERMISSION_DENIED
        wait_until(lambda: path.exists() and path.read_text().count("\n") == 2, 10, "two lines")
    served, denied = path.read_text().splitlines()
    assert f'"POST {PATH}echo HTTP/2" 200 - via_upstream - "-" 9 9 ' in served
    assert '"r1"' in served
    assert re.search(rf'"POST {PATH}total HTTP/2" 200 - rbac_access_denied_matched_policy\[ns\[foo\]', denied)
