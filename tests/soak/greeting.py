"""A gRPC server in the mesh, `python -m soak.greeting PORT`: SIGUSR1 makes it unavailable, SIGUSR2 well."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from soak.reasons import TOLD

import meshlib_grpc

COUNTED = 20


class Greeter:
    """What is served."""

    def __init__(self) -> None:
        self.well = True

    async def hello(self, asked: bytes, context: Any) -> bytes:
        """What was asked."""
        await self._look(context)
        return asked

    async def count(self, asked: bytes, context: Any) -> AsyncIterator[bytes]:
        """Some messages."""
        await self._look(context)
        for number in range(COUNTED):
            yield b"%d" % number

    async def _look(self, context: Any) -> None:
        if not self.well:
            await context.abort(grpc.StatusCode.UNAVAILABLE, TOLD)

    def handlers(self) -> Any:
        """Tried and Bare do the same; the rules are other ones."""
        one = grpc.unary_unary_rpc_method_handler(self.hello)
        methods = {"Tried": one, "Bare": one, "Count": grpc.unary_stream_rpc_method_handler(self.count)}
        return grpc.method_handlers_generic_handler("soak.Greeter", methods)


async def main() -> None:
    """Serves until it is told to stop."""
    greeter, told, loop = Greeter(), asyncio.Event(), asyncio.get_running_loop()
    server = meshlib_grpc.aio_server(handlers=[greeter.handlers()])
    server.add_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_signal_handler(signal.SIGUSR1, setattr, greeter, "well", False)
    loop.add_signal_handler(signal.SIGUSR2, setattr, greeter, "well", True)
    print(f"serving at {sys.argv[1]}", flush=True)
    await told.wait()
    await server.stop(30)


if __name__ == "__main__":
    asyncio.run(main())
