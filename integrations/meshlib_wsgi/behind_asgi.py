"""A WSGI application behind an ASGI server, on threads (a2wsgi).

Rules:

- Who was let in by the ASGI middleware is told in the environ.
- Of headers whose names have an underscore nothing is passed on: in an environ they can't be told from those
  with a dash, so a caller could say what was judged by another name.
- The context of the request's task is copied to its thread: what is handed on, is so there, too.
"""

from typing import Any

import a2wsgi

from meshlib_wsgi.middleware import Application, StartResponse
from meshlib_wsgi.peers import CALLER, Environ, caller_of


def behind_asgi(app: Application, threads: int) -> Any:
    """The WSGI application as an ASGI 3 one, which runs it in at most `threads` threads."""

    def told(environ: Environ, start_response: StartResponse) -> Any:
        known = caller_of(environ)
        if known is not None:
            environ[CALLER] = known
        return app(environ, start_response)

    # PEP 3333's types and a2wsgi's differ in their spelling only.
    inner: Any = a2wsgi.WSGIMiddleware(told, workers=threads)  # type: ignore[arg-type]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if any(b"_" in name for name, _ in scope.get("headers", ())):
            scope["headers"] = [header for header in scope["headers"] if b"_" not in header[0]]
        await inner(scope, receive, send)

    return asgi
