"""gRPC in the mesh: channels and servers that are gRPC's own to whoever uses them.

with meshlib_grpc.channel("reviews:9080") as channel:
    reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))

async with meshlib_grpc.aio_channel("reviews:9080") as channel:
    await reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))

grpc.intercept_channel(channel, *meshlib_grpc.interceptors("reviews:9080"))     # over a channel of one's own

meshlib_grpc.xds_channel("reviews:9080")                    # gRPC's own xDS client; or aio_xds_channel()

server = meshlib_grpc.server(ThreadPoolExecutor(8))         # or aio_server()
reviews_pb2_grpc.add_ReviewsServicer_to_server(Reviews(), server)
server.add_port("0.0.0.0:9080")
server.start()

What is loaded is what is used: a client loads nothing of servers.
"""

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.aio_channel import AsyncChannel
from meshlib_grpc.aio_intercept import interceptors_for
from meshlib_grpc.channel import Channel
from meshlib_grpc.intercept import Interceptor

if TYPE_CHECKING:
    from concurrent.futures import Executor, ThreadPoolExecutor

    from meshlib.core.caller import Caller
    from meshlib_grpc.inbound.aio_interceptor import AsyncServerInterceptor
    from meshlib_grpc.inbound.aio_server import AsyncServer
    from meshlib_grpc.inbound.interceptor import ServerInterceptor
    from meshlib_grpc.inbound.server import Server
    from meshlib_grpc.xds.server import XdsServer


def channel(
    target: str,
    mesh: Mesh | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
) -> Channel:
    """A channel to `host:port` of the mesh. `mesh` None: the process's own; `options` and `compression` are
    gRPC's. ValueError: the target is anything else.
    """
    return Channel(target, mesh, options, compression)


def aio_channel(
    target: str,
    mesh: Mesh | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> AsyncChannel:
    """As `channel`, for tasks. `interceptors` are the application's own: gRPC can't put them around a channel
    for tasks that is made.
    """
    return AsyncChannel(target, mesh, options, compression, interceptors)


def xds_channel(
    target: str,
    mesh: Mesh | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """A channel of gRPC's own to `host:port` of the mesh: what its own xDS client (`xds:///`) honours holds,
    at its speed. Its bootstrap and certificates are made, and kept new, for as long as the channel lives.

    What it ignores of the rules is told in a warning, see `ignored_by_xds`. `mesh` None: the process's own;
    `options` and `compression` are gRPC's. ValueError: the target is anything else. ConfigError: the mesh is
    a folder, or gRPC works by another bootstrap in this process.
    """
    from meshlib_grpc.xds.channel import xds_channel

    return xds_channel(target, mesh, options, compression)


def aio_xds_channel(
    target: str,
    mesh: Mesh | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> grpc.aio.Channel:
    """As `xds_channel`, for tasks: a `grpc.aio.Channel` of gRPC's own."""
    from meshlib_grpc.xds.channel import aio_xds_channel

    return aio_xds_channel(target, mesh, options, compression, interceptors)


def ignored_by_xds(target: str, mesh: Mesh | None = None) -> tuple[str, ...]:
    """What the rules of `host:port` say that gRPC's own xDS client does not do: document, line, field, and
    what becomes of it. Waits until the rules are known, and fails as a first call does.
    """
    from meshlib_grpc.xds.channel import ignored_by_xds

    return ignored_by_xds(target, mesh)


def interceptors(target: str, mesh: Mesh | None = None) -> list[grpc.UnaryUnaryClientInterceptor]:
    """What `grpc.intercept_channel(channel, *…)` takes: the rules of `host:port` for calls over that channel,
    but not where they go. One is of all four kinds.
    """
    return [Interceptor(target, mesh)]


def aio_interceptors(target: str, mesh: Mesh | None = None) -> list[grpc.aio.ClientInterceptor]:
    """As `interceptors`, for `grpc.aio.insecure_channel(…, interceptors=…)`; in a running loop."""
    return interceptors_for(target, mesh)


def server(
    thread_pool: "ThreadPoolExecutor",
    handlers: Sequence[Any] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: "grpc.Compression | None" = None,
    *,
    mesh: Mesh | None = None,
    register: bool = True,
    health: bool = False,
) -> "Server":
    """As `grpc.server`, in the mesh: `add_port("host:port")` in place of gRPC's two ways to add one.

    `mesh` None: the process's own. `register`: whether it is an endpoint of the services that select its
    labels, from `start` to `stop`. `health`: whether it serves grpc.health.v1, too. ConfigError: the extra
    for that is missing.
    """
    from meshlib_grpc.inbound.server import Server

    return Server(
        thread_pool,
        handlers,
        interceptors,
        options,
        maximum_concurrent_rpcs,
        compression,
        mesh=mesh,
        register=register,
        health=health,
    )


def aio_server(
    migration_thread_pool: "Executor | None" = None,
    handlers: Sequence[Any] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: "grpc.Compression | None" = None,
    *,
    mesh: Mesh | None = None,
    register: bool = True,
    health: bool = False,
) -> "AsyncServer":
    """As `server`, for tasks; the first arguments are `grpc.aio.server`'s."""
    from meshlib_grpc.inbound.aio_server import AsyncServer

    return AsyncServer(
        migration_thread_pool,
        handlers,
        interceptors,
        options,
        maximum_concurrent_rpcs,
        compression,
        mesh=mesh,
        register=register,
        health=health,
    )


def xds_server(
    thread_pool: "ThreadPoolExecutor",
    handlers: Sequence[Any] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: "grpc.Compression | None" = None,
    *,
    mesh: Mesh | None = None,
    register: bool = True,
) -> "XdsServer":
    """gRPC's own xDS server: the connections and policies are gRPC's to look after. `add_port("IP:port")`.

    `mesh` None: the process's own. `register`: as of `server`. ConfigError: the mesh is a folder, or gRPC
    works by another bootstrap in this process.
    """
    from meshlib_grpc.xds.server import XdsServer

    return XdsServer(
        thread_pool,
        handlers,
        interceptors,
        options,
        maximum_concurrent_rpcs,
        compression,
        mesh=mesh,
        register=register,
    )


def server_interceptor(mesh: Mesh | None = None, port: int | None = None) -> "ServerInterceptor":
    """For a `grpc.server` whose ports are gRPC's own: the first of its interceptors. `port`: at which it
    serves, whose policies hold; None: the one of the setting `ports`.
    """
    from meshlib_grpc.inbound.interceptor import ServerInterceptor

    return ServerInterceptor(mesh, port)


def aio_server_interceptor(mesh: Mesh | None = None, port: int | None = None) -> "AsyncServerInterceptor":
    """As `server_interceptor`, for a `grpc.aio.server`."""
    from meshlib_grpc.inbound.aio_interceptor import AsyncServerInterceptor

    return AsyncServerInterceptor(mesh, port)


def server_credentials(mesh: Mesh | None = None) -> "grpc.ServerCredentials":
    """For one `add_secure_port` of such a server: mutual TLS by the workload's certificate, as it is at each
    handshake.

    Waits for the first one. ControlUnavailable: none can be had. ConfigError: this mesh has none.
    """
    from meshlib_grpc.inbound.credentials import server_credentials

    return server_credentials(mesh)


def caller() -> "Caller | None":
    """Who sent the call that is being served here, as far as the mesh vouches for it; None: none is."""
    from meshlib.dataplane import context

    found = context.current()
    return None if found is None else found.caller


_LAZY = {
    "AsyncServerInterceptor": "meshlib_grpc.inbound.aio_interceptor",
    "AsyncServer": "meshlib_grpc.inbound.aio_server",
    "ServerInterceptor": "meshlib_grpc.inbound.interceptor",
    "Server": "meshlib_grpc.inbound.server",
    "XdsServer": "meshlib_grpc.xds.server",
}

__all__ = [
    "AsyncChannel",
    "AsyncServer",
    "AsyncServerInterceptor",
    "Channel",
    "Server",
    "ServerInterceptor",
    "XdsServer",
    "aio_channel",
    "aio_interceptors",
    "aio_server",
    "aio_server_interceptor",
    "aio_xds_channel",
    "caller",
    "channel",
    "ignored_by_xds",
    "interceptors",
    "server",
    "server_credentials",
    "server_interceptor",
    "xds_channel",
    "xds_server",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'meshlib_grpc' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return found
