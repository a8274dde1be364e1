"""What a handler in a task is told of its call: gRPC's context, as the mesh leaves it."""

from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from grpc import aio

from meshlib_grpc.inbound.serving import Serving, peer_text
from meshlib_grpc.metadata import Metadatum


class AsyncServedContext(aio.ServicerContext):  # type: ignore[misc]
    """A `grpc.aio.ServicerContext`: metadata and peer are the mesh's word; messages are the application's."""

    def __init__(
        self, context: Any, serving: Serving, parse: Callable[[bytes], Any], write: Callable[[Any], bytes]
    ) -> None:
        self._context = context
        self._parse = parse
        self._write = write
        self.serving = serving

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        found = await self._context.read()
        if found is aio.EOF:
            return found
        self.serving.received(found)
        return self._parse(found)

    async def write(self, message: Any) -> None:
        """Sends a message."""
        said = self._write(message)
        await self.begin()
        self.serving.sent(said)
        await self._context.write(said)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """With what the policies add."""
        await self._context.send_initial_metadata(self.serving.begun(initial_metadata))

    async def begin(self) -> None:
        """What the policies add goes before the response, if the handler did not begin it."""
        if self.serving.owes:
            await self.send_initial_metadata(())

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Ends the call."""
        self.serving.coded(code)
        await self.begin()
        await self._context.abort(code, details, tuple(trailing_metadata))
        raise AssertionError("gRPC goes on after abort")

    async def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the call."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: grpc.StatusCode) -> None:
        """Of the call, if it ends well."""
        self.serving.coded(code)
        self._context.set_code(code)

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        """Without what the caller may not say of itself."""
        return self.serving.metadata

    def peer(self) -> str:
        """Of the connection that came to the port."""
        return peer_text(self.serving.peer, self._context.peer())

    def add_done_callback(self, callback: Any) -> None:
        """Tells `callback` of this context when the call has ended."""
        self._context.add_done_callback(lambda _: callback(self))

    # gRPC's own

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._context.trailing_metadata()

    def set_details(self, details: str) -> None:
        self._context.set_details(details)

    def set_compression(self, compression: Any) -> None:
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._context.disable_next_message_compression()

    def peer_identities(self) -> Any:
        return self._context.peer_identities()

    def peer_identity_key(self) -> Any:
        return self._context.peer_identity_key()

    def auth_context(self) -> Any:
        return self._context.auth_context()

    def time_remaining(self) -> Any:
        return self._context.time_remaining()

    def code(self) -> Any:
        return self._context.code()

    def details(self) -> Any:
        return self._context.details()

    def cancelled(self) -> Any:
        return self._context.cancelled()

    def done(self) -> Any:
        return self._context.done()
