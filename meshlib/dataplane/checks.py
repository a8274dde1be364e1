"""Asking an external authority: one call, straight to an endpoint of its cluster, as Envoy does.

Rules:

- The call is balanced and secured as any other to that cluster, and made once: no route, no retry. Its
  time is the filter's, from the first byte of the connection to the last of the answer.
- Whatever goes wrong is no answer; what that means, core decides.
- A gRPC authority is asked over a connection of its own, on a thread where there is an event loop.
- Each event loop, and the threads of a process, have connections of their own; those of a loop go when it is
  closed. A child of a fork has new ones.
"""

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from meshlib.core.actions import Attempt
from meshlib.core.authz.external import (
    MOST_BODY,
    Blocked,
    Check,
    GrpcAuthority,
    HttpAuthority,
    NoAnswer,
    Opinion,
    Passed,
    http_opinion,
    http_request,
)
from meshlib.core.balance.pick import pick
from meshlib.core.breaker import Slots, allows_request
from meshlib.core.mtls import secure
from meshlib.core.request import Failed, Header, RequestHead
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import call_once
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.secure import check as check_server
from meshlib.dataplane.http.secure import context_for, server_name
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import MeshError
from meshlib.xds import pb
from meshlib.xds.names import ClusterName

CHECK = "/envoy.service.auth.v3.Authorization/Check"
_UNANSWERED = (MeshError, Broken, OSError, ValueError, DecodeError)
_FORBIDDEN = 403
Owner = TypeVar("Owner")


class Checks:
    """Asks for threads."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._own = _PerOwner[int](
            lambda: blocking.Connections(time.monotonic, lambda: mesh.contexts), _is_another_process
        )
        mesh.on_close(self._own.close)

    def __call__(self, check: Check) -> Opinion:
        """What the authority says; NoAnswer, whatever its failure."""
        authority = check.filter.authority
        try:
            self._mesh.prepare(_target(authority.cluster))
            if isinstance(authority, GrpcAuthority):
                return _ask_grpc(self._mesh, authority, check)
            call = _Call(self._mesh, authority, http_request(check.filter, authority, check.question.head))
            with call.counted():
                answered = self._own.get(os.getpid()).send(call.attempt, b"")
                if isinstance(answered, Failed):
                    return NoAnswer(answered.detail or answered.how.value)
                with_body = _Collected()
                for chunk in answered:
                    if not with_body.add(chunk):
                        answered.close()
                        break
            return http_opinion(authority, answered.head, with_body.data)
        except _UNANSWERED as error:
            return NoAnswer(str(error))


class AsyncChecks:
    """Asks for tasks."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._own = _PerOwner[asyncio.AbstractEventLoop](
            lambda: asynchronous.Connections(time.monotonic, lambda: mesh.contexts),
            lambda loop: loop.is_closed(),
        )
        mesh.on_close(self._own.close)

    async def __call__(self, check: Check) -> Opinion:
        """What the authority says; NoAnswer, whatever its failure."""
        authority = check.filter.authority
        try:
            await self._mesh.aprepare(_target(authority.cluster))
            if isinstance(authority, GrpcAuthority):
                return await asyncio.to_thread(_ask_grpc, self._mesh, authority, check)
            call = _Call(self._mesh, authority, http_request(check.filter, authority, check.question.head))
            with call.counted():
                answered = await self._own.get(asyncio.get_running_loop()).send(call.attempt, b"")
                if isinstance(answered, Failed):
                    return NoAnswer(answered.detail or answered.how.value)
                with_body = _Collected()
                async for chunk in answered:
                    if not with_body.add(chunk):
                        answered.close()
                        break
            return http_opinion(authority, answered.head, with_body.data)
        except _UNANSWERED as error:
            return NoAnswer(str(error))


class _PerOwner(Generic[Owner]):
    """Connections of each event loop, or of the process."""

    def __init__(self, make: Callable[[], Any], gone: Callable[[Owner], bool]) -> None:
        """`gone` tells of an owner that it is no more."""
        self._make = make
        self._gone = gone
        self._made: dict[Owner, Any] = {}

    def get(self, owner: Owner) -> Any:
        """Its connections. Of several threads that ask first one wins."""
        found = self._made.get(owner)
        if found is None:
            for other in [one for one in list(self._made) if self._gone(one)]:
                self._made.pop(other, None)  # what it had open is closed with the last reference
            found = self._made.setdefault(owner, self._make())
        return found

    def close(self) -> None:
        for owner in list(self._made):
            made = self._made.pop(owner, None)
            if made is not None:
                made.close()


def _is_another_process(pid: int) -> bool:
    return pid != os.getpid()


class _Collected:
    """An answer's body, as far as it is handed on."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, chunk: bytes) -> bool:
        """Whether there is room for more."""
        self.data = (self.data + chunk)[:MOST_BODY]
        return len(self.data) < MOST_BODY


class _Call:
    """One call to an endpoint of an authority's cluster. MeshError: there is none."""

    def __init__(self, mesh: Mesh, authority: HttpAuthority | GrpcAuthority, head: RequestHead) -> None:
        view, now = mesh.view, mesh.clock()
        cluster = view.clusters.get(authority.cluster)
        endpoints = None if cluster is None else cluster.inline or view.endpoints.get(cluster.name)
        if cluster is None or endpoints is None:
            raise MeshError(f"cluster {authority.cluster} is unknown")
        state = mesh.ledger.cluster(cluster.name)
        found = pick(cluster, endpoints, state, now, mesh.dice)
        if found is None or not allows_request(cluster.limits, state):
            raise MeshError(f"cluster {cluster.name} has no endpoint that can take a request")
        self._state, self._host = state, state.host(found.key)
        self.attempt = Attempt(
            cluster.name,
            (found.host, found.port),
            head,
            min(cluster.connect_timeout, authority.timeout),
            None,
            now + authority.timeout,
            max_requests_per_connection=cluster.max_requests_per_connection,
            idle_timeout=cluster.idle_timeout,
            max_connections=cluster.limits.max_connections,
            max_pending=cluster.limits.max_pending,
            tls=secure(cluster, found),
        )

    @contextmanager
    def counted(self) -> Iterator[None]:
        """It is in flight."""
        with Slots(self._state) as slots:
            slots.begin(self._host)
            yield


def _target(cluster: str) -> str:
    """The `host:port` by which a cluster is asked for."""
    name = ClusterName.parse(cluster)
    if name is None:
        raise MeshError(f"cluster {cluster} is no service of the mesh")
    return f"{name.host}:{name.port}"


# gRPC


def _ask_grpc(mesh: Mesh, authority: GrpcAuthority, check: Check) -> Opinion:
    head = RequestHead("POST", "http", authority.authority or authority.cluster, CHECK)
    call = _Call(mesh, authority, head)
    host, port = call.attempt.address
    tls, contexts, certs = call.attempt.tls, mesh.contexts, mesh.certs
    own = certs.held.principal if certs is not None and certs.held is not None else ""
    with call.counted():
        try:
            reply = call_once(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                CHECK,
                check_request(check, own).SerializeToString(),
                context=None if tls is None else context_for(tls, contexts),
                server_name="" if tls is None else server_name(call.attempt, tls),
                metadata=authority.metadata,
                timeout=authority.timeout,
                authority=head.authority,
                check=None if tls is None else functools.partial(check_server, tls, contexts),
            )
        except CallEnded as ended:
            return NoAnswer(str(ended))
    return grpc_opinion(pb.CheckResponse.FromString(reply))


def check_request(check: Check, own: str) -> Any:
    """The envoy.service.auth.v3.CheckRequest about a request; `own`: this workload's `spiffe://…`."""
    head, peer = check.question.head, check.question.peer
    made = pb.CheckRequest()
    attributes = made.attributes
    for side, (address, port), principal in (
        (attributes.source, peer.address, peer.principal),
        (attributes.destination, peer.local, own),
    ):
        side.address.socket_address.address = address
        side.address.socket_address.port_value = port
        side.principal = principal
    http = attributes.request.http
    http.method, http.scheme, http.host, http.path = head.method, head.scheme, head.authority, head.path
    http.size, http.protocol = -1, "HTTP/1.1"
    identity = head.header(b"x-request-id")
    http.id = "" if identity is None else identity.decode("latin-1")
    shown = [
        *((f":{name}", value) for name, value in (("method", head.method), ("path", head.path))),
        *((f":{name}", value) for name, value in (("authority", head.authority), ("scheme", head.scheme))),
        *(
            (name.decode("latin-1"), value.decode("utf-8", "replace"))
            for name, value in check.filter.shown(head)
        ),
    ]
    for name, value in shown:
        known = http.headers.get(name)
        http.headers[name] = value if known is None else f"{known},{value}"
    return made


def grpc_opinion(reply: Any) -> Opinion:
    """What an envoy.service.auth.v3.CheckResponse means."""
    if reply.status.code == 0 and reply.WhichOneof("http_response") in (None, "ok_response"):
        good = reply.ok_response
        if good.query_parameters_to_set or good.query_parameters_to_remove:
            return NoAnswer("the authority changes query parameters, which is not supported")
        options = [(option, _header(option.header)) for option in good.headers]
        return Passed(
            set=tuple(header for option, header in options if not option.append.value),
            append=tuple(header for option, header in options if option.append.value),
            remove=tuple(name.lower().encode() for name in good.headers_to_remove),
            to_client=_headers(good.response_headers_to_add),
        )
    if reply.WhichOneof("http_response") == "error_response":
        return NoAnswer("the authority says that it failed")
    denied = reply.denied_response
    status = denied.status.code or _FORBIDDEN
    if not 200 <= status < 600:
        return NoAnswer(f"the authority answered with status {status}")
    return Blocked(status, _headers(denied.headers), denied.body.encode())


def _headers(options: Iterable[Any]) -> tuple[Header, ...]:
    return tuple(_header(option.header) for option in options)


def _header(message: Any) -> Header:
    return message.key.lower().encode(), message.value.encode() or bytes(message.raw_value)
