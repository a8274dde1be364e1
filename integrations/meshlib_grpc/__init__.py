"""gRPC in the mesh: channels that are gRPC's own to whoever uses them.

with meshlib_grpc.channel("reviews:9080") as channel:
    reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))

async with meshlib_grpc.aio_channel("reviews:9080") as channel:
    await reviews_pb2_grpc.ReviewsStub(channel).Get(reviews_pb2.Request(id=1))
"""

from collections.abc import Iterable
from typing import Any

from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.aio_channel import AsyncChannel
from meshlib_grpc.channel import Channel


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


__all__ = ["AsyncChannel", "Channel", "aio_channel", "channel"]
