"""What a handler on a thread is told of its call: gRPC's context, as the mesh leaves it."""

from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from meshlib_grpc.inbound.serving import Serving, peer_text
from meshlib_grpc.metadata import Metadatum


class ServedContext(grpc.ServicerContext):  # type: ignore[misc]
    """A `grpc.ServicerContext`: metadata and peer are the mesh's word, all else is gRPC's."""

    def __init__(self, context: Any, serving: Serving) -> None:
        self._context = context
        self.serving = serving

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        """Without what the caller may not say of itself."""
        return self.serving.metadata

    def peer(self) -> str:
        """Of the connection that came to the port."""
        return peer_text(self.serving.peer, self._context.peer())

    def set_code(self, code: Any) -> None:
        """Of the call, if it ends well."""
        self.serving.coded(code)
        self._context.set_code(code)

    def abort(self, code: Any, details: str = "", *trailing: Any) -> NoReturn:
        """Ends the call."""
        self.serving.coded(code if code is not grpc.StatusCode.OK else grpc.StatusCode.UNKNOWN)
        self.begin()
        self._context.abort(code, details, *trailing)
        raise AssertionError("gRPC goes on after abort")

    def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the call."""
        if status.trailing_metadata:
            self._context.set_trailing_metadata(status.trailing_metadata)
        self.abort(status.code, status.details)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """With what the policies add."""
        self._context.send_initial_metadata(self.serving.begun(initial_metadata))

    def begin(self) -> None:
        """What the policies add goes before the response, if the handler did not begin it."""
        if self.serving.owes:
            self.send_initial_metadata(())

    # gRPC's own

    def is_active(self) -> bool:
        active: Callable[[], bool] | None = getattr(self._context, "is_active", None)
        return active is None or active()  # an aio server's context for threads does not know

    def time_remaining(self) -> Any:
        return self._context.time_remaining()

    def cancel(self) -> None:
        self._context.cancel()

    def add_callback(self, callback: Any) -> Any:
        return self._context.add_callback(callback)

    def peer_identities(self) -> Any:
        return self._context.peer_identities()

    def peer_identity_key(self) -> Any:
        return self._context.peer_identity_key()

    def auth_context(self) -> Any:
        return self._context.auth_context()

    def set_compression(self, compression: Any) -> None:
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._context.disable_next_message_compression()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._context.trailing_metadata()

    def set_details(self, details: str) -> None:
        self._context.set_details(details)

    def code(self) -> Any:
        return self._context.code()

    def details(self) -> Any:
        return self._context.details()
