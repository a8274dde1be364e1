"""One request that this process makes, watched from its head to the end of its response's body.

Rules:

- If spans are made, the request says its own place in the trace instead of what is handed on.
- It is told of once: when the body has ended, broke off or was closed, or the request failed.
- A failure counts as the response that a sidecar would have made of it: 503, 504 or 502.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from meshlib.core.actions import Attempt, Facts, joined
from meshlib.core.fault import DELAYED
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed, Failure, Header, RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.telemetry import labels, propagation, spans
from meshlib.dataplane.telemetry.ended import (
    VIA_UPSTREAM,
    Ended,
    broken_off,
    details_of_failure,
    details_of_reply,
    size,
    size_of_headers,
)
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.dataplane.telemetry.workload import PEER_METADATA

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_TIMED_OUT = (Failure.TRY_TIMED_OUT, Failure.TIMED_OUT)
_NOT_CONNECTED = (Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT)
_NO_FACTS = Facts()
_SERVICE_TIME = b"x-envoy-upstream-service-time"
_STATUS_LINE = len("HTTP/1.1 200 OK\r\n\r\n")


class Sized(Protocol):
    """A request's body."""

    @property
    def size(self) -> int:
        """Bytes, as far as it was read."""
        ...


class Outbound:
    """Not thread-safe: a request has one driver."""

    __slots__ = (
        *(
            "_body",
            "_details",
            "_done",
            "_facts",
            "_failure",
            "_headers",
            "_logs",
            "_span",
            "_spans",
            "_started",
        ),
        *("_status", "_telemetry", "_version", "_waited", "_wall", "head", "received", "sent"),
    )

    def __init__(self, telemetry: Telemetry, target: str, head: RequestHead, body: Sized) -> None:
        self.head = head
        """The request as it goes on."""
        self.received = 0
        """Bytes of the response's body that have come; whoever reads it counts."""
        self.sent = 0
        """Bytes that left after the request's body: of another protocol."""
        self._telemetry, self._body = telemetry, body
        self._logs, self._spans = telemetry.told(target)
        self._started = telemetry.clock()
        self._wall = telemetry.wall() if self._logs else 0.0
        self._status, self._facts, self._details, self._failure = 0, _NO_FACTS, "", ""
        self._headers: Sequence[Header] = ()
        self._version = b"HTTP/1.1"
        self._waited: float | None = None
        """Seconds until the response's head."""
        self._done = False
        self._span: Span | None = None
        if telemetry.tracer is not None and self._spans is not None:
            self._begin_span(self._spans)

    def _begin_span(self, said: spans.Spans) -> None:
        from opentelemetry import trace

        telemetry, head = self._telemetry, self.head
        parent = propagation.extract(head.index)
        first = parent is None and not trace.get_current_span().get_span_context().is_valid
        if first:
            handed = context.current()
            parent = propagation.extract(dict(handed.headers)) if handed is not None else None
        assert telemetry.tracer is not None  # noqa: S101 - asked before
        if first and parent is None and not said.samples():
            self._span = span = spans.unsampled()
        else:
            self._span = span = telemetry.tracer.start_span(
                f"egress {head.authority}", spans.below(parent), trace.SpanKind.CLIENT, spans.at_start(head)
            )
        own = spans.id_of(span)
        if own is not None:
            above = parent.span if parent is not None else 0
            self.head = propagation.carrying(head, propagation.inject(own, telemetry.formats, above))

    @property
    def traced(self) -> bool:
        """Whether the head says where the request belongs in a trace."""
        return self._span is not None

    def answered(
        self, status: int, headers: Sequence[Header], facts: Facts, version: bytes, *, own: bool
    ) -> None:
        """The response's head is there; `own`: the mesh made it."""
        self._status, self._headers, self._facts, self._version = status, headers, facts, version
        self._details = details_of_reply(facts.flag) if own else VIA_UPSTREAM
        if not own:
            self._waited = self._telemetry.clock() - self._started

    def trailed(self, trailers: Sequence[Header]) -> None:
        """These headers came after the body; to be told before the end."""
        self._headers = (*self._headers, *trailers)

    def failed(self, failed: Failed, facts: Facts) -> None:
        """There is no response, or its body broke off."""
        flag = facts.flag
        if self._status == 0:
            self._status = 504 if failed.how in _TIMED_OUT else 502 if failed.how is Failure.PROTOCOL else 503
            self._details = details_of_failure(failed.how)
            self._failure = failed.detail if failed.how in _NOT_CONNECTED else ""
        elif flag in ("-", DELAYED):
            own, self._details = broken_off(failed.how)
            flag = joined(flag, own)
        self._facts = facts._replace(flag=flag)
        self.end()

    def gave_up(self) -> None:
        """The application did not want to wait, or its own part of the request failed."""
        if not self._done:
            before = DELAYED if self._facts.flag == DELAYED else "-"
            self._facts = self._facts._replace(flag=joined(before, "DC"))
            self.end()

    def end(self) -> None:
        """The response is whole. A second time does nothing."""
        if self._done:
            return
        self._done = True
        telemetry, head, facts = self._telemetry, self.head, self._facts
        seconds = telemetry.clock() - self._started
        status = self._status
        if telemetry.instruments is not None:
            self._measure(seconds)
        if not self._logs and self._span is None:
            return
        headers = {name.lower(): value for name, value in self._headers}
        if self._waited is not None:
            # Envoy's router adds it to what it passes on; here only the log has a use for it.
            headers[_SERVICE_TIME] = b"%d" % (self._waited * 1000)
        ended = Ended(
            head,
            status,
            self._wall,
            seconds,
            facts.flag,
            self._details,
            self._version.decode("latin-1"),
            headers,
            self._body.size + self.sent if facts.attempts and not self._failure else 0,
            self.received,
            facts.route,
            "" if facts.flag.endswith("NC") else facts.cluster,
            facts.endpoint,
            failure=self._failure,
        )
        for log in self._logs:
            log.write(ended)
        if self._span is not None:
            self._span.update_name(spans.name_of(facts.cluster, head.authority))
            assert self._spans is not None  # noqa: S101 - there is a span
            spans.finish(self._span, ended, telemetry.tags, self._spans, facts.endpoint.rpartition(":")[0])

    def _measure(self, seconds: float) -> None:
        telemetry, facts = self._telemetry, self._facts
        assert telemetry.instruments is not None  # noqa: S101 - asked before
        bound = telemetry.outbound_ends(facts, self.head.authority)
        kind = self.head.index.get(b"content-type")
        if kind is not None and labels.is_grpc(kind):
            series = bound.of_grpc(self._status, facts.flag, self._grpc_status(), telemetry.instruments)
        else:
            series = bound.of(self._status, facts.flag, telemetry.instruments)
        received = self.received + _STATUS_LINE + size_of_headers(self._headers)
        sent = size(self.head) + self._body.size + self.sent
        telemetry.instruments.add((series, seconds * 1000, sent, received))

    def _grpc_status(self) -> str:
        said = b""
        for name, value in self._headers:
            if name.lower() == b"grpc-status":
                said = value
        return said.decode("latin-1")


def watch(telemetry: Telemetry, target: str, head: RequestHead, body: Sized) -> Outbound | None:
    """What watches a request to a target; its `head` is what goes on. None: nobody wants to be told."""
    return Outbound(telemetry, target, head, body) if telemetry.wants(target) else None


def introduced(attempt: Attempt, tls: ClientTls, telemetry: Telemetry) -> Attempt:
    """The attempt, which says to a server of the mesh (and to nobody else) what this workload is."""
    if not tls.mesh_identity or PEER_METADATA in attempt.head.index:
        return attempt
    return attempt._replace(head=attempt.head.plus(telemetry.told_to_servers()))
