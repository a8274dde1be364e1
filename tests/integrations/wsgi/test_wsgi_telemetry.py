"""What is told of requests to WSGI applications."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from opentelemetry import trace
from support.policed import PAGE, PORT, STRANGER, gate, peer
from support.telemetry import Told

from meshlib.dataplane.gate import Gate
from meshlib_wsgi import PEER, MeshMiddleware


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture
def reviews(tmp_path: Path, told: Told) -> Iterator[Gate]:
    found = gate(tmp_path)
    found.mesh.telemetry = told.telemetry(found.mesh.bootstrap, lambda: found.mesh.view)
    with found.mesh:
        yield found


def ask(app: Any, reviews: Gate, principal: str = PAGE, read: int = 100) -> None:
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/a",
        "QUERY_STRING": "",
        "SERVER_PORT": str(PORT),
        "HTTP_HOST": "reviews:9080",
        "wsgi.url_scheme": "http",
        "CONTENT_LENGTH": "4",
        "wsgi.file_wrapper": FileWrapper,
        PEER: peer(principal),
        "SERVER_PROTOCOL": "HTTP/1.0",
    }
    body = MeshMiddleware(app, reviews)(environ, lambda *_: None)
    for _, _chunk in zip(range(read), body, strict=False):
        pass
    getattr(body, "close", lambda: None)()


def a_list(environ: Any, start: Any) -> list[bytes]:
    start("201 Created", [("x-a", "b")])
    return [b"hello ", b"world"]


def a_generator(environ: Any, start: Any) -> Iterable[bytes]:
    start("201 Created", [("x-a", "b")])
    yield b"hello "
    yield b"world"


@pytest.mark.parametrize("app", [a_list, a_generator])
def test_a_whole_response(app: Any, reviews: Gate, told: Told) -> None:
    ask(app, reviews)
    ((count, labels),) = told.requests()
    assert (count, labels["reporter"], labels["response_code"]) == (1, "destination", "201")
    assert (labels["source_principal"], labels["connection_security_policy"]) == (PAGE, "mutual_tls")
    assert labels["response_flags"] == "-"
    (sent,) = told.metrics()["istio_response_bytes"]
    assert sent.sum == 19 + len("x-a") + len("b") + 4 + 11
    (span,) = told.spans
    attributes = dict(span.attributes or {})
    assert (attributes["request_size"], attributes["response_size"]) == ("4", "11")
    assert attributes["http.protocol"] == "HTTP/1.0"


def test_the_span_is_current_wherever_the_applications_code_runs(reviews: Gate, told: Told) -> None:
    seen = []

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        seen.append(trace.get_current_span().get_span_context())
        start("200 OK", [])
        yield b"x"
        seen.append(trace.get_current_span().get_span_context())
        yield b"y"

    ask(app, reviews)
    (span,) = told.spans
    assert seen == [span.get_span_context()] * 2
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_caller_that_leaves(reviews: Gate, told: Told) -> None:
    ask(a_generator, reviews, read=1)
    ((_, labels),) = told.requests()
    assert (labels["response_code"], labels["response_flags"]) == ("201", "DC")


def test_a_refusal(reviews: Gate, told: Told) -> None:
    ask(a_list, reviews, STRANGER)
    ((_, labels),) = told.requests()
    assert (labels["response_code"], labels["source_principal"]) == ("403", STRANGER)


def test_an_application_that_fails(reviews: Gate, told: Told) -> None:
    def fails(environ: Any, start: Any) -> Any:
        raise RuntimeError("no")

    def fails_late(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        yield b"x"
        raise RuntimeError("no")

    for app in (fails, fails_late):
        with pytest.raises(RuntimeError):
            ask(app, reviews)
    assert sorted(labels["response_code"] for _, labels in told.requests()) == ["200", "500"]


def test_a_file_is_as_long_as_it_was_announced(reviews: Gate, told: Told, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [("Content-Length", "1000")])
        return environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))

    ask(app, reviews)
    (sent,) = told.metrics()["istio_response_bytes"]
    assert sent.sum == 19 + len("Content-Length") + 4 + 4 + 1000
