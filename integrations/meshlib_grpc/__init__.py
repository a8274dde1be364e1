"""gRPC in the mesh: channels that are gRPC's own to whoever uses them.

with meshlib_grpc.channel("reviews:9080") as channel:
    reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))

async with meshlib_grpc.aio_channel("reviews:9080") as channel:
    await reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))

grpc.intercept_channel(channel, *meshlib_grpc.interceptors("reviews:9080"))     # over a channel of one's own
"""

from collections.abc import Iterable
from typing import Any

import grpc

from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.aio_channel import AsyncChannel
from meshlib_grpc.aio_intercept import interceptors_for
from meshlib_grpc.channel import Channel
from meshlib_grpc.intercept import Interceptor


def channel(
    target: str, mesh: Mesh | None = None, options: Iterable[tuple[str, Any]] | None = None
) -> Channel:
    """A channel to `host:port` of the mesh. `mesh` None: the process's own; `options`: gRPC's arguments."""
    return Channel(target, mesh, options)


def aio_channel(
    target: str, mesh: Mesh | None = None, options: Iterable[tuple[str, Any]] | None = None
) -> AsyncChannel:
    """As `channel`, for tasks."""
    return AsyncChannel(target, mesh, options)


def interceptors(target: str, mesh: Mesh | None = None) -> list[grpc.UnaryUnaryClientInterceptor]:
    """What `grpc.intercept_channel(channel, *…)` takes: the rules of `host:port` for calls over that channel,
    but not where they go. One is of all four kinds.
    """
    return [Interceptor(target, mesh)]


def aio_interceptors(target: str, mesh: Mesh | None = None) -> list[grpc.aio.ClientInterceptor]:
    """As `interceptors`, for `grpc.aio.insecure_channel(…, interceptors=…)`; in a running loop."""
    return interceptors_for(target, mesh)


__all__ = ["AsyncChannel", "Channel", "aio_channel", "aio_interceptors", "channel", "interceptors"]
