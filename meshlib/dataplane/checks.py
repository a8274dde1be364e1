"""Asking an external authority: one call, straight to an endpoint of its cluster, as Envoy does.

Rules:

- The call is balanced and secured as any other to that cluster, and made once: no route, no retry. Its
  time is the filter's, from the first byte of the connection to the last of the answer.
- Whatever goes wrong is no answer; what that means, core decides. A request that can't be written as HTTP is
  refused: nobody should get in by being unspeakable.
- A gRPC authority is asked over a connection of its own, on a thread where there is an event loop.
- Each event loop, and the threads of a process, have connections of their own; those of a loop go when it is
  closed. A child of a fork has new ones.
"""

import asyncio
import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from meshlib.core.actions import Attempt
from meshlib.core.authz.external import (
    MOST_BODY,
    Check,
    GrpcAuthority,
    HttpAuthority,
    http_opinion,
    http_request,
)
from meshlib.core.authz.opinion import Blocked, NoAnswer, Opinion
from meshlib.core.balance.pick import pick
from meshlib.core.breaker import Slots
from meshlib.core.mtls import secure
from meshlib.core.request import Failed, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.decode.check import check_request, grpc_opinion
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import call_once
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.secure import check as check_server
from meshlib.dataplane.http.secure import context_for, server_name
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.network import aconnections_of, connections_of
from meshlib.errors import MeshError
from meshlib.xds import pb
from meshlib.xds.names import ClusterName

CHECK = "/envoy.service.auth.v3.Authorization/Check"
_UNANSWERED = (MeshError, Broken, OSError, ValueError, DecodeError)
_UNSPEAKABLE = Blocked(400)
Owner = TypeVar("Owner")


class Checks:
    """Asks for threads."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._own = _PerOwner[int](
            lambda: connections_of(mesh, lambda: mesh.contexts, math.inf),
            _is_another_process,
        )
        mesh.on_close(self._own.close)

    def __call__(self, check: Check) -> Opinion:
        """What the authority says; NoAnswer, whatever its failure."""
        authority = check.filter.authority
        try:
            view = self._mesh.prepare(_target(authority.cluster))
            if isinstance(authority, GrpcAuthority):
                return _ask_grpc(self._mesh, view, authority, check)
            call = _Call(self._mesh, view, authority, http_request(check, authority))
            with call.counted():
                answered = self._own.get(os.getpid()).send(call.attempt, _content(check))
                if isinstance(answered, Failed):
                    return NoAnswer(answered.detail or answered.how.value)
                with_body = _Collected()
                for chunk in answered:
                    if not with_body.add(chunk):
                        answered.close()
                        break
            return http_opinion(authority, answered.head, with_body.data)
        except Unsendable:
            return _UNSPEAKABLE
        except _UNANSWERED as error:
            return NoAnswer(str(error))


class AsyncChecks:
    """Asks for tasks."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._own = _PerOwner[asyncio.AbstractEventLoop](
            lambda: aconnections_of(mesh, lambda: mesh.contexts, math.inf),
            lambda loop: loop.is_closed(),
        )
        mesh.on_close(self._own.close)

    async def __call__(self, check: Check) -> Opinion:
        """What the authority says; NoAnswer, whatever its failure."""
        authority = check.filter.authority
        try:
            view = await self._mesh.aprepare(_target(authority.cluster))
            if isinstance(authority, GrpcAuthority):
                return await asyncio.to_thread(_ask_grpc, self._mesh, view, authority, check)
            call = _Call(self._mesh, view, authority, http_request(check, authority))
            with call.counted():
                answered = await self._own.get(asyncio.get_running_loop()).send(call.attempt, _content(check))
                if isinstance(answered, Failed):
                    return NoAnswer(answered.detail or answered.how.value)
                with_body = _Collected()
                async for chunk in answered:
                    if not with_body.add(chunk):
                        answered.close()
                        break
            return http_opinion(authority, answered.head, with_body.data)
        except Unsendable:
            return _UNSPEAKABLE
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

    def __init__(
        self, mesh: Mesh, view: View, authority: HttpAuthority | GrpcAuthority, head: RequestHead
    ) -> None:
        now = mesh.clock()
        cluster = view.clusters.get(authority.cluster)
        endpoints = None if cluster is None else cluster.inline or view.endpoints.get(cluster.name)
        if cluster is None or endpoints is None:
            raise MeshError(f"cluster {authority.cluster} is unknown")
        state = mesh.ledger.cluster(cluster.name)
        found = pick(cluster, endpoints, state, now, mesh.dice)
        if found is None:
            raise MeshError(f"cluster {cluster.name} has no healthy endpoint")
        self._slots, self._host = Slots(state, mesh.clock), state.host(found.key)
        self.attempt = Attempt(
            cluster.name,
            found.address,
            head,
            cluster.upstream,
            None,
            now + authority.timeout,
            tls=secure(cluster, found),
            queue=self._slots,
            at=found.at,
        )

    @contextmanager
    def counted(self) -> Iterator[None]:
        """It is in flight."""
        with self._slots:
            self._slots.begin(self._host)
            yield

    def goes_on(self) -> bool:
        """Whether it may have a connection that no pool gives."""
        return self._slots.goes_on(self.attempt.upstream.limits)


def _content(check: Check) -> bytes:
    """The body that an HTTP authority is sent."""
    return b"" if check.body is None else check.body.data


def _target(cluster: str) -> str:
    """The `host:port` by which a cluster is asked for."""
    name = ClusterName.parse(cluster)
    if name is None:
        raise MeshError(f"cluster {cluster} is no service of the mesh")
    return f"{name.host}:{name.port}"


# gRPC


def _ask_grpc(mesh: Mesh, view: View, authority: GrpcAuthority, check: Check) -> Opinion:
    if mesh.network is not None:
        return NoAnswer("the network of this mesh carries no gRPC")
    head = RequestHead("POST", "http", authority.authority or authority.cluster, CHECK)
    call = _Call(mesh, view, authority, head)
    host, port = call.attempt.at or call.attempt.address
    tls, contexts, certs = call.attempt.tls, mesh.contexts, mesh.certs
    own = certs.held.principal if certs is not None and certs.held is not None else ""
    with call.counted():
        if not call.goes_on():
            return NoAnswer("too many checks are in flight")
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
