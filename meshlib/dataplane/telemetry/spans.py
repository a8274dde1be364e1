"""Spans, as Envoy names them and their attributes, with Istio's tags.

Rules:

- The parent is what the request itself says, if it says something; else the span that is current in this
  task or thread; else what the request that is being served said.
- A span that nobody will see (not sampled) is told nothing but where it belongs.
- Of a trace that begins here the configuration's share is given to the SDK, whose own sampler is asked then;
  the others begin with a span that is not sampled, and everybody below hears so. What a caller decided stays.
- A tag from the environment is one of the variables that the application allows: others may be secrets.
- Values are text, as Envoy's are. An error is a status of 500 and more, or none at all.
"""

import logging
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from meshlib.core.request import Dice, RequestHead
from meshlib.core.telemetry import TagSource, Tracing
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.dataplane.telemetry.propagation import SpanId
from meshlib.xds.names import ClusterName
from meshlib.xds.workload import Workload

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

INGRESS = "ingress"


class Spans:
    """What the configuration says of the spans of one listener."""

    __slots__ = ("_dice", "_fixed", "_headers", "_sampling")

    def __init__(
        self,
        said: Tracing,
        dice: Dice,
        variables: Collection[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`variables`: those that may be read of `environ`."""
        self._sampling, self._dice = said.sampling, dice
        self._fixed: dict[str, str] = {}
        self._headers: list[tuple[str, bytes, str]] = []
        for tag in said.tags:
            value = tag.value
            if tag.source is TagSource.HEADER:
                self._headers.append((tag.name, value.lower().encode("latin-1", "replace"), tag.default))
                continue
            if tag.source is TagSource.ENVIRONMENT:
                if value not in variables:
                    said_of = "the tag %s of spans is not %s of the environment: see `tag_variables`"
                    log.warning(said_of, tag.name, value)
                value = (environ.get(value) if value in variables else None) or tag.default
            if value:
                self._fixed[tag.name] = value

    def samples(self) -> bool:
        """Whether a trace that begins now is one of those that are sampled."""
        return self._sampling is None or self._dice.random() < self._sampling

    def tags(self, head: RequestHead) -> dict[str, str]:
        """The tags of a request's span."""
        if not self._headers:
            return self._fixed
        found = dict(self._fixed)
        for name, header, default in self._headers:
            value = _text(head.header(header)) or default
            if value:
                found[name] = value
        return found


def unsampled() -> "Span":
    """The beginning of a trace that nobody will see."""
    from opentelemetry import trace

    whole, own = (int.from_bytes(os.urandom(size)) or 1 for size in (16, 8))
    return trace.NonRecordingSpan(trace.SpanContext(whole, own, is_remote=False))


def name_of(cluster: str, authority: str) -> str:
    """Of an outbound request: Istio's `host:port/*` by its cluster, else Envoy's `egress <authority>`."""
    known = ClusterName.parse(cluster)
    return f"{known.host}:{known.port}/*" if known is not None else f"egress {authority}"


def tags_of(own: Workload, mesh_id: str) -> Mapping[str, str]:
    """What every span of a process says of it."""
    return {
        "component": "proxy",
        "node_id": os.uname().nodename,
        "istio.canonical_service": own.service,
        "istio.canonical_revision": own.revision,
        "istio.mesh_id": mesh_id,
        "istio.namespace": own.namespace,
        "istio.cluster_id": own.cluster,
    }


def below(remote: SpanId | None) -> "Context | None":
    """The context of a span whose parent is `remote`; None: whatever is current."""
    if remote is None:
        return None
    from opentelemetry import trace

    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if remote.sampled else trace.TraceFlags.DEFAULT)
    state = trace.TraceState.from_header([remote.state]) if remote.state else None
    known = trace.SpanContext(remote.trace, remote.span, True, flags, state)
    return trace.set_span_in_context(trace.NonRecordingSpan(known))


def id_of(span: "Span") -> SpanId | None:
    """What other processes are told of a span; None: it is none."""
    known = span.get_span_context()
    if not known.is_valid:
        return None
    state = known.trace_state.to_header() if known.trace_state else ""
    return SpanId(known.trace_id, known.span_id, known.trace_flags.sampled, state)


def at_start(head: RequestHead) -> dict[str, str]:
    """What a sampler may want to know."""
    return {"http.method": head.method, "http.url": f"{head.scheme}://{head.authority}{head.path}"}


def finish(span: "Span", ended: Ended, tags: Mapping[str, str], said: Spans, peer: str) -> None:
    """Says everything, and ends the span. `peer`: the IP of the other side."""
    if span.is_recording():
        span.set_attributes({**tags, **_attributes(ended, peer), **said.tags(ended.head)})
        if ended.status == 0 or ended.status >= 500:
            from opentelemetry.trace import Status, StatusCode

            span.set_attribute("error", "true")
            span.set_status(Status(StatusCode.ERROR))
    span.end()


def _attributes(ended: Ended, peer: str) -> dict[str, str]:
    head = ended.head
    found = {
        "http.protocol": ended.protocol,
        "http.status_code": str(ended.status),
        "request_size": str(ended.received),
        "response_size": str(ended.sent),
        "response_flags": ended.flags,
    }
    known = (
        ("guid:x-request-id", _text(head.header(b"x-request-id"))),
        ("user_agent", _text(head.header(b"user-agent"))),
        ("peer.address", peer),
        ("upstream_cluster", ended.cluster),
        ("upstream_cluster.name", ended.cluster),
        ("upstream_address", ended.upstream),
    )
    found.update((name, value) for name, value in known if value)
    return found


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("latin-1")
