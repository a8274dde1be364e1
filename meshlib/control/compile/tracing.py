"""How spans are made of requests, as Envoy's tracing: sampling and tags.

Rules:

- Spans that are off are a connection manager without tracing.
- No provider is compiled: an application brings an SDK, an Envoy's own bootstrap names a tracer.
- Where nobody says a percentage an Envoy has Istio's; an application's SDK decides alone.
"""

from typing import Any

from meshlib.control.graph.telemetries import ISTIO_PERCENTAGE, Spans


def put_tracing(manager: Any, spans: Spans, *, envoy: bool) -> None:
    """On an HttpConnectionManager of an Envoy, or of a client in a process."""
    if not spans.enabled or (envoy and not spans.said):
        return
    made = manager.tracing
    made.SetInParent()
    percentage = spans.percentage
    if percentage is None and envoy:
        percentage = ISTIO_PERCENTAGE
    if percentage is not None:
        made.client_sampling.value = made.overall_sampling.value = 100.0
        made.random_sampling.value = percentage
    for tag in spans.tags:
        added = made.custom_tags.add(tag=tag.name)
        if tag.source == "literal":
            added.literal.value = tag.value
            continue
        said = added.environment if tag.source == "environment" else added.request_header
        said.name, said.default_value = tag.value, tag.default
