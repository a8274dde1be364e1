"""The extension: the WSGI middleware around the application, and the caller in `flask.g`."""

import flask

from meshlib.dataplane.gate import Gate
from meshlib_wsgi import CALLER, MeshMiddleware


class Mesh:
    """Puts an application behind the mesh's policies. Give it here, or to `init_app`."""

    def __init__(
        self, app: flask.Flask | None = None, gate: Gate | None = None, *, port: int | None = None
    ) -> None:
        """`gate` None: of the process's own mesh at `port`; that None: the port that the server says."""
        self._gate = gate
        self._port = port
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Puts the application behind the mesh's policies; a second time does nothing."""
        if "meshlib" in app.extensions:
            return
        app.extensions["meshlib"] = self
        app.wsgi_app = MeshMiddleware(app.wsgi_app, self._gate, port=self._port)  # type: ignore[method-assign]
        # The first of all: others may ask for the caller.
        app.before_request_funcs.setdefault(None, []).insert(0, _tell)


def _tell() -> None:
    flask.g.mesh = flask.request.environ[CALLER]
