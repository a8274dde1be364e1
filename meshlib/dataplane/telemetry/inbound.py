"""One request to this process, watched from its head to the end of its response.

Rules:

- While its span is current, what the application makes of the request (its own spans, its calls) is below it.
- It is told of once: when the response is whole, when the application gave up or broke, or when the
  policy refused it. A refusal has Istio's details (`rbac_access_denied_…`, `jwt_authn_…`).
- An application that fails before its response began counts as 500; a caller that left, as Envoy's flag DC.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from meshlib.core.actions import Reply
from meshlib.core.request import Header, Peer, RequestHead
from meshlib.dataplane.telemetry import labels, propagation, spans
from meshlib.dataplane.telemetry.ended import VIA_UPSTREAM, Ended, size, size_of_headers
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.dataplane.telemetry.workload import PEER_METADATA

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_STATUS_LINE = len("HTTP/1.1 200 OK\r\n\r\n")
ROUTE = "default"
"""Istio's name of the only route inbound."""


class Inbound:
    """Not thread-safe: a request has one driver."""

    __slots__ = (
        *(
            "_details",
            "_done",
            "_flags",
            "_grpc_status",
            "_headers",
            "_logs",
            "_port",
            "_protocol",
            "_span",
            "_spans",
            "_started",
        ),
        *("_status", "_telemetry", "_wall", "head", "peer", "received", "sent"),
    )

    def __init__(self, telemetry: Telemetry, head: RequestHead, peer: Peer, port: int, protocol: str) -> None:
        """`head` is the request as it came; `port` the workload's own; `protocol` such as `HTTP/1.1`."""
        self.head, self.peer = head, peer
        self.received = self.sent = 0
        """Bytes of both bodies; whoever moves them counts."""
        self._telemetry, self._port, self._protocol = telemetry, port, protocol
        self._logs, self._spans = telemetry.told(port)
        self._started = telemetry.clock()
        self._wall = telemetry.wall() if self._logs else 0.0
        self._status, self._flags, self._details = 0, "-", VIA_UPSTREAM
        self._headers: Collection[Header] = ()
        self._grpc_status = ""
        self._done = False
        self._span: Span | None = None
        if telemetry.tracer is not None and self._spans is not None:
            from opentelemetry import trace

            # A span that is current already is the server's own instrumentation: this one belongs below it.
            known = trace.get_current_span().get_span_context().is_valid
            parent = None if known else propagation.extract(head.index)
            if not known and parent is None and not self._spans.samples():
                self._span = spans.unsampled()
            else:
                self._span = telemetry.tracer.start_span(
                    spans.INGRESS, spans.below(parent), trace.SpanKind.SERVER, spans.at_start(head)
                )

    def attach(self) -> object:
        """What is done from here on, in this task or thread, is done for the request."""
        if self._span is None:
            return None
        from opentelemetry import context, trace

        return context.attach(trace.set_span_in_context(self._span))

    def detach(self, token: Any) -> None:
        """Ends what `attach` began, in the same task or thread."""
        if token is not None:
            from opentelemetry import context

            context.detach(token)

    def answered(self, status: int, headers: Collection[Header]) -> None:
        """The head of the application's response."""
        self._status, self._headers = status, headers

    @property
    def announced(self) -> int:
        """Bytes of the response's body, as its content-length says; 0: it does not."""
        for name, value in self._headers:
            if name.lower() == b"content-length" and value.isdigit():
                return int(value)
        return 0

    def trailers(self, headers: Iterable[Header]) -> None:
        """What comes after the response's body."""
        for name, value in headers:
            if name.lower() == b"grpc-status":
                self._grpc_status = value.decode("latin-1")

    def refused(self, reply: Reply) -> None:
        """The policy answered."""
        self._status, self._headers, self._flags = reply.status, reply.headers, reply.facts.flag
        self._details = "_".join(reply.facts.detail.split())
        self.sent = len(reply.body)
        self.end()

    def broken(self) -> None:
        """The application failed, or was stopped because the caller had left."""
        if not self._done:
            if self._status == 0:
                self._status = 500
            self._details = "application_failed"
            self.end()

    def left(self) -> None:
        """The caller did not wait for the end."""
        if not self._done:
            self._flags, self._details = "DC", "downstream_remote_disconnect"
            self.end()

    def end(self) -> None:
        """The response is whole. A second time does nothing."""
        if self._done:
            return
        self._done = True
        telemetry = self._telemetry
        seconds = telemetry.clock() - self._started
        if telemetry.instruments is not None:
            self._measure(seconds)
        if not self._logs and self._span is None:
            return
        peer = self.peer
        ended = Ended(
            self.head,
            self._status,
            self._wall,
            seconds,
            self._flags,
            self._details,
            self._protocol,
            {name.lower(): value for name, value in self._headers},
            self.received,
            self.sent,
            ROUTE,
            f"inbound|{self._port}||",
            local=_address(peer.local),
            remote=_address(peer.address),
            sni=peer.sni,
            principal=peer.principal,
        )
        for log in self._logs:
            log.write(ended)
        if self._span is not None:
            self._span.update_name(
                f"{telemetry.service[0]}:{self._port}/*" if telemetry.service[0] else spans.INGRESS
            )
            assert self._spans is not None  # noqa: S101 - there is a span
            spans.finish(self._span, ended, telemetry.tags, self._spans, peer.address[0])

    def _measure(self, seconds: float) -> None:
        telemetry = self._telemetry
        assert telemetry.instruments is not None  # noqa: S101 - asked before
        index = self.head.index
        bound = telemetry.inbound_ends(self.peer, index.get(PEER_METADATA))
        sent = self.sent + _STATUS_LINE + size_of_headers(self._headers)
        kind = index.get(b"content-type")
        if kind is not None and labels.is_grpc(kind):
            if not self._grpc_status:
                self.trailers(self._headers)
            series = bound.of_grpc(self._status, self._flags, self._grpc_status, telemetry.instruments)
        else:
            series = bound.of(self._status, self._flags, telemetry.instruments)
        received = size(self.head) + self.received
        telemetry.instruments.add((series, seconds * 1000, received, sent))


def _address(found: tuple[str, int]) -> str:
    host, port = found
    if not host:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
