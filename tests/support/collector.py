"""A collector of OpenTelemetry's protocol over HTTP: keeps what it is sent."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collected:
    """What came."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []

    def spans(self) -> list[tuple[dict[str, str], Any]]:
        """Each span, with what its resource says."""
        return [
            (_texts(of.resource.attributes), span)
            for request in self.traces
            for of in request.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]

    def points(self, name: str) -> list[tuple[dict[str, str], Any]]:
        """The points of a metric in the last message that has it, with their attributes."""
        found: list[tuple[dict[str, str], Any]] = []
        for request in self.metrics:
            points = [
                (_texts(point.attributes), point)
                for of in request.resource_metrics
                for scope in of.scope_metrics
                for metric in scope.metrics
                if metric.name == name
                for point in (*metric.sum.data_points, *metric.histogram.data_points)
            ]
            found = points or found
        return found


def _texts(attributes: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in attributes}


@contextmanager
def collector() -> Iterator[Collected]:
    """Collects while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                collected.traces.append(ExportTraceServiceRequest.FromString(body))
            else:
                collected.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collected = Collected(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collected
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
