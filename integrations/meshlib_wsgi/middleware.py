"""WSGI middleware: policy, the caller, and what travels on."""

import http
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import meshlib
from meshlib.core.actions import Facts, Reply
from meshlib.core.authz.opinion import Told, answered
from meshlib.core.framing import ambiguous
from meshlib.core.request import RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.context import Handed
from meshlib.dataplane.gate import Gate, Gates
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib_wsgi.body import Body
from meshlib_wsgi.environ import head_of, mistrust, write
from meshlib_wsgi.peers import CALLER, Environ, caller_of, peer_of, port_of
from meshlib_wsgi.watching import starting, watch, whole

StartResponse = Callable[..., Any]
Application = Callable[[Any, Any], Iterable[bytes]]
_VERSIONS = {"2.0": "2", "3.0": "3", "1": "1.0"}
"""As servers write them: CGI's with a dot, granian none."""


class MeshMiddleware:
    """Wraps a WSGI application. A request that the mesh let in already passes through."""

    def __init__(self, app: Application, gate: Gate | None = None, *, port: int | None = None) -> None:
        """`gate` None: of the process's own mesh at `port`; that None: the port that the server says.

        The policies are those of the workload's port, so behind a port mapping, or at a socket of the file
        system, `port` must be given.
        """
        self.app = app
        self.gates = Gates(gate, port, meshlib.default)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI."""
        known = caller_of(environ)
        if known is not None:
            environ[CALLER] = known
            return self.app(environ, start_response)
        gate = self.gates.at(port_of(environ))
        gate.prepare()
        mistrust(environ)
        came = head_of(environ)
        head = gate.identified(came)
        peer = peer_of(environ, gate.principal)
        watched = watch(gate.mesh.telemetry, environ, head, peer, gate.port)
        shown = Body(environ)
        why = unclear(environ, head)
        if why is not None:
            _close_after(start_response)
        verdict = why or gate.admit(head, peer, shown.read)
        if isinstance(verdict, Reply):
            if watched is not None:
                watched.refused(verdict)
            return refuse(verdict, start_response)
        if not write(environ, verdict.head, came):
            verdict = elsewhere()
            if watched is not None:
                watched.refused(verdict)
            return refuse(verdict, start_response)
        environ[CALLER] = verdict.caller
        shown.restore()
        if verdict.response_headers:
            start_response = _adding(verdict.response_headers, start_response)
        if watched is not None:
            start_response = starting(start_response, watched)
        handed = gate.handed(verdict, watched)
        try:
            with context.entered(handed):
                body = self.app(environ, start_response)
        except BaseException:
            handed.served()
            if watched is not None:
                watched.broken()
            raise
        # No code of the application runs while these are read; and servers send their files by themselves.
        if isinstance(body, (list, tuple, environ.get("wsgi.file_wrapper") or ())):
            handed.served()
            if watched is not None:
                whole(body, watched)
            return body
        return _Body(body, handed, watched)


class _Body:
    """A response's body, whose code runs as part of the request."""

    def __init__(self, body: Iterable[bytes], handed: Handed, watched: Inbound | None) -> None:
        self._body = body
        self._handed = handed
        self._watched = watched
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> "_Body":
        return self

    def __next__(self) -> bytes:
        watched = self._watched
        try:
            with context.entered(self._handed):
                if self._chunks is None:
                    self._chunks = iter(self._body)
                chunk = next(self._chunks)
        except StopIteration:
            self._handed.served()
            if watched is not None:
                watched.end()
            raise
        except BaseException:
            self._handed.served()
            if watched is not None:
                watched.broken()
            raise
        if watched is not None:
            watched.sent += len(chunk)
        return chunk

    def close(self) -> None:
        """The response is over."""
        self._handed.served()
        close = getattr(self._body, "close", None)
        if close is not None:
            with context.entered(self._handed):
                close()
        if self._watched is not None:
            self._watched.left()


def unclear(environ: Environ, head: RequestHead) -> Reply | None:
    """The answer to a request that others may read otherwise; None: nobody does."""
    version = str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).removeprefix("HTTP/")
    why = ambiguous(_VERSIONS.get(version, version), head)
    return Reply(400, Facts(detail=why)) if why else None


def _close_after(start_response: StartResponse) -> None:
    """No other request of the connection is served, where the server has a word for that: gunicorn has.

    An application has none: headers of the connection are the server's (PEP 3333).
    """
    close = getattr(getattr(start_response, "__self__", None), "force_close", None)
    if close is not None:
        close()


def elsewhere() -> Reply:
    """The answer to a request whose path led out of the application."""
    return Reply(404, Facts(detail="path_outside_of_application"))


def refuse(reply: Reply, start_response: StartResponse) -> Iterable[bytes]:
    """Answers for the application."""
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in reply.headers
        if name != b"connection"  # the server's to say (PEP 3333)
    ]
    start_response(status_line(reply.status), [*headers, ("content-length", str(len(reply.body)))])
    return [reply.body]


def status_line(status: int) -> str:
    """Such as `403 Forbidden`."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Status"


def _adding(told: Iterable[Told], start_response: StartResponse) -> StartResponse:
    def start(status: str, given: list[tuple[str, str]], *rest: Any) -> Any:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
        made = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in answered(headers, told)]
        return start_response(status, made, *rest)

    return start
