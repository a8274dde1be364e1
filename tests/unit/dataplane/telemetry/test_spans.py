"""Spans as the configuration wants them, with a real SDK: what is sampled, what a caller decided, tags."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from support.telemetry import Told

from meshlib.bootstrap import bootstrap
from meshlib.core.actions import Facts
from meshlib.core.request import Peer, RequestHead
from meshlib.core.telemetry import CustomTag, TagSource, Telling, Tracing
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib.dataplane.telemetry.outbound import watch
from meshlib.dataplane.telemetry.spans import Spans
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.xds.names import inbound_listener

WHO = bootstrap({}, service="productpage", state_dir="")
TARGET, PORT = "reviews:9080", 9080
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"


class Dice:
    """Always gives the same number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


class Body:
    size = 0


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


def telemetry(told: Told, tracing: Tracing | None, number: float = 0.5) -> Telemetry:
    made = told.telemetry(WHO, meters=None, dice=Dice(number))
    said = Telling(tracing=tracing)
    made.take({TARGET: said, inbound_listener(PORT): said})
    return made


def outbound(made: Telemetry, *headers: tuple[bytes, bytes]) -> RequestHead:
    """The request as it goes on."""
    head = RequestHead("GET", "http", TARGET, "/", list(headers))
    watched = watch(made, TARGET, head, Body())
    if watched is None:
        return head
    watched.answered(200, (), Facts(), b"HTTP/1.1", own=False)
    watched.end()
    return watched.head


def inbound(made: Telemetry, *headers: tuple[bytes, bytes]) -> str:
    """The flags that what is done for the request hands on; empty: there is no span."""
    if not made.wants(PORT):
        return ""
    head = RequestHead("GET", "http", TARGET, "/", list(headers))
    watched = Inbound(made, head, Peer(("", 0), ("", 0), "", "", False), PORT, "HTTP/1.1")
    token = watched.attach()
    found = trace.get_current_span().get_span_context()
    watched.detach(token)
    watched.answered(200, ())
    watched.end()
    return f"{found.trace_flags & 1:02x}" if found.is_valid else ""


def flags(head: RequestHead) -> str:
    said = head.index.get(b"traceparent")
    return "" if said is None else said.decode()[-2:]


@pytest.mark.parametrize(
    ("tracing", "number", "sampled"),
    [
        (Tracing(), 0.999, "01"),
        (Tracing(1.0), 0.999, "01"),
        (Tracing(0.25), 0.24, "01"),
        (Tracing(0.25), 0.25, "00"),
        (Tracing(0.0), 0.0, "00"),
        (None, 0.0, ""),
    ],
)
def test_a_trace_that_begins_here_is_sampled_by_its_share(
    tracing: Tracing | None, number: float, sampled: str, told: Told
) -> None:
    made = telemetry(told, tracing, number)
    assert flags(outbound(made)) == sampled
    assert inbound(made) == sampled
    assert len(told.spans) == 2 * (sampled == "01")


@pytest.mark.parametrize("decided", ["00", "01"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_callers_decision_stays(decided: str, share: float) -> None:
    told = Told(trace_sampler())
    made = telemetry(told, Tracing(share))
    header = (b"traceparent", CALLER.format(flags=decided).encode())
    assert flags(outbound(made, header)) == decided
    assert inbound(made, header) == decided
    assert len(told.spans) == 2 * (decided == "01")
    told.close()


def trace_sampler() -> Any:
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON

    return DEFAULT_ON


def test_what_is_done_below_a_span_is_of_its_trace(told: Told) -> None:
    made = telemetry(told, Tracing(0.0))
    span = told.tracers.get_tracer("own").start_span("own")
    with trace.use_span(span, end_on_exit=True):
        assert flags(outbound(made)) == "01"
        assert inbound(made) == "01"
    assert len(told.spans) == 3


def test_without_spans_a_callers_headers_go_on_as_they_came(told: Told) -> None:
    header = (b"traceparent", CALLER.format(flags="01").encode())
    assert outbound(telemetry(told, None), header).index[b"traceparent"] == header[1]
    assert told.spans == []


def test_an_unsampled_trace_has_ids_of_its_own(told: Told) -> None:
    made = telemetry(told, Tracing(0.0))
    ids = {outbound(made).index[b"traceparent"] for _ in range(10)}
    assert len(ids) == 10
    assert {len(one) for one in ids} == {55}


def tag(source: TagSource, value: str, default: str = "") -> Tracing:
    return Tracing(None, (CustomTag("it", source, value, default),))


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (tag(TagSource.LITERAL, "x"), "x"),
        (tag(TagSource.HEADER, "End-User", "nobody"), "jason"),
        (tag(TagSource.HEADER, "x-none", "nobody"), "nobody"),
        (tag(TagSource.HEADER, "x-none"), None),
        (tag(TagSource.ENVIRONMENT, "POD_NAME", "nowhere"), "pod-1"),
        (tag(TagSource.ENVIRONMENT, "NODE_NAME", "nowhere"), "nowhere"),
        (tag(TagSource.ENVIRONMENT, "NODE_NAME"), None),
    ],
)
def test_tags(said: Tracing, value: str | None) -> None:
    environ = {"POD_NAME": "pod-1", "TOKEN": "secret"}
    head = RequestHead("GET", "http", TARGET, "/", [(b"end-user", b"jason")])
    assert Spans(said, Dice(0.0), WHO.tag_variables, environ).tags(head).get("it") == value


def test_a_variable_that_the_application_does_not_allow_stays_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said, head = tag(TagSource.ENVIRONMENT, "TOKEN", "unknown"), RequestHead("GET", "http", TARGET, "/", [])
    assert Spans(said, Dice(0.0), WHO.tag_variables, {"TOKEN": "secret"}).tags(head) == {"it": "unknown"}
    assert "the tag it of spans is not TOKEN of the environment" in caplog.text
    assert Spans(said, Dice(0.0), ("TOKEN",), {"TOKEN": "x"}).tags(head) == {"it": "x"}


def test_a_span_has_them(told: Told) -> None:
    made = telemetry(told, Tracing(None, (CustomTag("user", TagSource.HEADER, "end-user"),)))
    outbound(made, (b"end-user", b"jason"))
    inbound(made, (b"end-user", b"jason"))
    assert [dict(span.attributes or {})["user"] for span in told.spans] == ["jason", "jason"]
