"""A Flask application that calls another service; nothing in it hands anything on."""

from typing import Any

import flask
from support.told import BACK, told

import meshlib
from meshlib_flask import Mesh

app = flask.Flask(__name__)
Mesh(app)
client = meshlib.Client()


@app.get("/seen")
def seen() -> dict[str, Any]:
    return told(flask.g.mesh, flask.request.headers)


@app.get("/hop")
def hop() -> dict[str, Any]:
    return {**told(flask.g.mesh, flask.request.headers), "next": client.get(BACK).json()}
