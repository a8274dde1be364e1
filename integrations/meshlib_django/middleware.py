"""Django's middleware: policy, the caller, and what travels on, for sync and async views."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase, StreamingHttpResponse

import meshlib
from meshlib.core.actions import Reply
from meshlib.core.authz.opinion import Told, answered
from meshlib.core.inbound import Admitted
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.context import Handed
from meshlib.dataplane.gate import Gate, Gates
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib_asgi import middleware as asgi
from meshlib_asgi.peers import peer_of as asgi_peer
from meshlib_django.body import Body
from meshlib_wsgi.environ import head_of, mistrust, write, write_headers
from meshlib_wsgi.middleware import elsewhere, unclear
from meshlib_wsgi.peers import caller_of, peer_of, port_of
from meshlib_wsgi.watching import watch

_PATHS = ("SCRIPT_NAME", "PATH_INFO")
GetResponse = Callable[[HttpRequest], Any]


class MeshMiddleware:
    """One class for both kinds of view. A request that the mesh let in already passes through."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse, gate: Gate | None = None) -> None:
        """`gate` None: of the process's own mesh, at MESH_PORT or the port that the server says."""
        self._next = get_response
        self._gates = Gates(gate, getattr(settings, "MESH_PORT", None), meshlib.default)
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Django asks one of both, as it found `get_response`."""
        return self._acall(request) if self._async else self._call(request)

    def _call(self, request: HttpRequest) -> HttpResponseBase:
        scope = _scope(request)
        if _known(request, scope):
            return _response(self._next(request))
        gate = self._gates.at(_port(request, scope))
        gate.prepare()
        came = _head(request, scope)
        head = gate.identified(came)
        peer = _peer(request, scope, gate)
        watched = _watch(request, scope, gate, head, peer)
        body = Body(request)
        verdict = _unclear(request, scope, head) or gate.admit(head, peer, body.read)
        if isinstance(verdict, Reply):
            if watched is not None:
                watched.refused(verdict)
            return _refuse(verdict)
        if not _tell(request, scope, verdict, came):
            return _gone(watched)
        body.restore()
        handed = gate.handed(verdict, watched)
        try:
            with context.entered(handed):
                response = _response(self._next(request))
        except BaseException:
            handed.served()
            if watched is not None:
                watched.broken()
            raise
        return _finish(response, verdict, handed, watched)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        scope = _scope(request)
        if _known(request, scope):
            return _response(await self._next(request))
        gate = self._gates.at(_port(request, scope))
        await gate.aprepare()
        came = _head(request, scope)
        head = gate.identified(came)
        peer = _peer(request, scope, gate)
        watched = _watch(request, scope, gate, head, peer)
        body = Body(request)
        verdict = _unclear(request, scope, head) or await gate.aadmit(head, peer, body.aread)
        if isinstance(verdict, Reply):
            if watched is not None:
                watched.refused(verdict)
            return _refuse(verdict)
        if not _tell(request, scope, verdict, came):
            return _gone(watched)
        body.restore()
        handed = gate.handed(verdict, watched)
        try:
            with context.entered(handed):
                response = _response(await self._next(request))
        except BaseException:
            handed.served()
            if watched is not None:
                watched.broken()
            raise
        return _finish(response, verdict, handed, watched)


def _response(found: Any) -> HttpResponseBase:
    assert isinstance(found, HttpResponseBase)  # noqa: S101 - Django's contract
    return found


def _scope(request: HttpRequest) -> Any:
    """ASGI's scope; None: the server speaks WSGI."""
    return getattr(request, "scope", None)


def _known(request: HttpRequest, scope: Any) -> bool:
    """Whether a middleware around Django has let it in; then `request.mesh` says whom."""
    known = caller_of(request.META) if scope is None else asgi.known(scope)
    if known is None:
        return False
    request.mesh = known
    return True


def _port(request: HttpRequest, scope: Any) -> int:
    return port_of(request.META) if scope is None else asgi.port_of(scope)


def _head(request: HttpRequest, scope: Any) -> RequestHead:
    if scope is not None:
        return asgi.head_of(scope)
    meta = request.META
    for key in _PATHS:  # Django has made text of them
        meta[key] = str(meta.get(key, "")).encode().decode("latin-1")
    mistrust(meta)
    return head_of(meta)


def _unclear(request: HttpRequest, scope: Any, head: RequestHead) -> Reply | None:
    return unclear(request.META, head) if scope is None else asgi.unclear(scope, head)


def _peer(request: HttpRequest, scope: Any, gate: Gate) -> Peer:
    return peer_of(request.META, gate.principal) if scope is None else asgi_peer(scope, gate.principal)


def _watch(request: HttpRequest, scope: Any, gate: Gate, head: RequestHead, peer: Peer) -> Inbound | None:
    """What watches the request; None: nobody wants to be told."""
    protocol = None if scope is None else f"HTTP/{scope['http_version']}"
    return watch(gate.mesh.telemetry, request.META, head, peer, gate.port, protocol)


def _refuse(reply: Reply) -> HttpResponse:
    response = HttpResponse(reply.body, status=reply.status)
    del response["Content-Type"]
    for name, value in reply.headers:
        if name == b"connection":
            continue  # the server's to say
        response[name.decode("latin-1")] = value.decode("latin-1")
    return response


def _gone(watched: Inbound | None) -> HttpResponse:
    verdict = elsewhere()
    if watched is not None:
        watched.refused(verdict)
    return _refuse(verdict)


def _tell(request: HttpRequest, scope: Any, admitted: Admitted, head: RequestHead) -> bool:
    """Whether the request is still one for this project."""
    request.mesh = admitted.caller
    meta = request.META
    if scope is None:
        stays = write(meta, admitted.head, head)
        for key in _PATHS:
            meta[key] = meta[key].encode("latin-1").decode(errors="replace")
        request.path_info = meta["PATH_INFO"] or "/"
    else:
        stays = asgi.tell(scope, admitted, head)
        script = str(meta.get("SCRIPT_NAME", ""))
        meta["QUERY_STRING"] = scope.get("query_string", b"").decode("latin-1")
        meta["PATH_INFO"] = request.path_info = scope["path"].removeprefix(script)
        if admitted.head is not head:
            write_headers(meta, admitted.head, head)
        if admitted.head.authority:  # of HTTP/2 it may have stood there twice
            meta["HTTP_HOST"] = admitted.head.authority
    request.path = f"{str(meta['SCRIPT_NAME']).rstrip('/')}/{request.path_info.removeprefix('/')}"
    for made in ("headers", "GET", "COOKIES"):  # of META, or of the scope, at the first look
        request.__dict__.pop(made, None)
    return stays


def _finish(
    response: HttpResponseBase, admitted: Admitted, handed: Handed, watched: Inbound | None
) -> HttpResponseBase:
    if admitted.response_headers:
        _add(response, admitted.response_headers)
    if watched is not None:
        _answered(response, watched)
    if isinstance(response, StreamingHttpResponse) and not getattr(response, "file_to_stream", None):
        # Setting it again would forget who is to be closed: so what it iterates is replaced, in its place.
        chunks: Any = response.streaming_content
        response.streaming_content = (
            _astream(chunks, handed, watched) if response.is_async else _stream(chunks, handed, watched)
        )
    else:
        handed.served()
    return response


def _add(response: HttpResponseBase, told: Iterable[Told]) -> None:
    """Django has one place for a name: values become one list, and cookies stand apart."""
    cookies = [one for one in told if one.name == b"set-cookie"]
    for cookie in cookies:
        response.cookies.load(cookie.value.decode("latin-1"))
    came = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
    made: dict[str, str] = {}
    for name, value in answered(came, (one for one in told if one not in cookies)):
        key, text = name.decode("latin-1"), value.decode("latin-1")
        made[key] = f"{made[key]}, {text}" if key in made else text
    for key, text in made.items():
        response.headers[key] = text


def _answered(response: HttpResponseBase, watched: Inbound) -> None:
    """Tells of the response; a body that is whole, or a file that the server sends, ends the request."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    watched.answered(response.status_code, headers)
    if isinstance(response, HttpResponse):
        watched.sent = len(response.content)
        watched.end()
    elif getattr(response, "file_to_stream", None):
        watched.sent = watched.announced
        watched.end()


def _stream(chunks: Iterable[bytes], handed: Handed, watched: Inbound | None) -> Iterator[bytes]:
    """A body whose code runs as part of the request."""
    steps = iter(chunks)
    with _ending(handed, watched), contextlib.suppress(StopIteration):
        while True:
            with context.entered(handed):
                chunk = next(steps)
            if watched is not None:
                watched.sent += len(chunk)
            yield chunk


async def _astream(chunks: Any, handed: Handed, watched: Inbound | None) -> AsyncIterator[bytes]:
    steps = aiter(chunks)
    with _ending(handed, watched), contextlib.suppress(StopAsyncIteration):
        while True:
            with context.entered(handed):
                chunk = await anext(steps)
            if watched is not None:
                watched.sent += len(chunk)
            yield chunk


@contextlib.contextmanager
def _ending(handed: Handed, watched: Inbound | None) -> Iterator[None]:
    """The end of a body is the end of the request, for who watches it, too."""
    try:
        yield
    except GeneratorExit:
        if watched is not None:
            watched.left()
        raise
    except BaseException:
        if watched is not None:
            watched.broken()
        raise
    finally:
        handed.served()
    if watched is not None:
        watched.end()
