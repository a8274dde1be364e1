"""Flask in the mesh, by one line."""

from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from support.policed import PAGE, gate, peer

from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib_flask import Mesh
from meshlib_wsgi import PEER


@pytest.fixture
def reviews(tmp_path: Path) -> Iterator[Gate]:
    found = gate(tmp_path)
    with found.mesh:
        yield found


@pytest.fixture
def app(reviews: Gate) -> flask.Flask:
    made = flask.Flask("reviews")

    @made.before_request
    def early() -> None:
        flask.g.early = flask.g.mesh.namespace

    @made.get("/")
    def page() -> str:
        handed = context.current()
        assert handed is not None
        return (
            f"{flask.g.early}/{flask.g.mesh.service_account} for {dict(handed.headers)[b'end-user'].decode()}"
        )

    @made.get("/stream")
    def stream() -> flask.Response:
        def body() -> Iterator[str]:
            handed = context.current()
            yield f"{flask.g.mesh.service_account} {handed is not None}"

        return flask.Response(flask.stream_with_context(body()))

    Mesh(made, reviews)
    return made


def ask(app: flask.Flask, principal: str, path: str) -> tuple[int, str]:
    with app.test_client() as client:
        reply = client.get(
            path,
            base_url="http://reviews:9080",
            environ_base={PEER: peer(principal)},
            headers={"end-user": "jason"},
        )
        return reply.status_code, reply.text


def test_the_caller_is_in_g(app: flask.Flask) -> None:
    assert ask(app, PAGE, "/") == (200, "default/productpage for jason")


def test_a_streamed_body_is_part_of_the_request(app: flask.Flask) -> None:
    assert ask(app, PAGE, "/stream") == (200, "productpage True")


def test_who_is_refused(app: flask.Flask) -> None:
    assert ask(app, "", "/") == (403, "RBAC: access denied")
    assert ask(app, PAGE, "/admin") == (403, "RBAC: access denied")
    assert ask(app, PAGE, "/nowhere")[0] == 404


def test_a_factorys_application(reviews: Gate) -> None:
    app, mesh = flask.Flask("reviews"), Mesh(gate=reviews)
    mesh.init_app(app)
    inner = app.wsgi_app
    mesh.init_app(app)
    assert app.wsgi_app is inner
    assert app.extensions["meshlib"] is mesh
    assert ask(app, "", "/") == (403, "RBAC: access denied")
