"""`channel("reviews:9080")`: a `grpc.Channel` whose calls the mesh routes, for threads."""

import threading
from collections.abc import Iterable
from typing import Any

import grpc

import meshlib
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError, RequestError
from meshlib_grpc.asked import Target
from meshlib_grpc.methods import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshlib_grpc.options import compressed
from meshlib_grpc.sender import Sender


class Channel(grpc.Channel):  # type: ignore[misc]
    """A channel whose calls the mesh routes. Thread-safe."""

    def __init__(
        self,
        target: str,
        mesh: Mesh | None = None,
        options: Iterable[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        self._target = Target.parse(target)
        self._sender = Sender(mesh or meshlib.default, compressed(options, compression))

    def __repr__(self) -> str:
        return f"<Channel {self._target.authority} {self._sender!r}>"

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """What calls that method."""
        return UnaryUnary(self._sender, self._target, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        """What calls that method."""
        return UnaryStream(self._sender, self._target, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        """What calls that method."""
        return StreamUnary(self._sender, self._target, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        """What calls that method."""
        return StreamStream(self._sender, self._target, method, request_serializer, response_deserializer)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """Tells `callback` once how it is: READY if it is known what to do with calls to the target."""
        name = "meshlib-grpc-look"
        threading.Thread(target=self._look, args=(callback,), name=name, daemon=True).start()

    def _look(self, callback: Any) -> None:
        try:
            self._sender.mesh.prepare(self._target.name)
        except (ControlError, RequestError):
            callback(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        else:
            callback(grpc.ChannelConnectivity.READY)

    def unsubscribe(self, callback: Any) -> None:
        """It was told once."""

    def close(self) -> None:
        """Closes the connections; the mesh stays."""
        self._sender.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
