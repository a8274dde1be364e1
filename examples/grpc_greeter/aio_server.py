"""The same greeter, in tasks: `python aio_server.py 127.0.0.1:9080`."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc

import meshlib_grpc


async def hello(name: str, context: grpc.aio.ServicerContext) -> str:
    """Greets, and says who asked."""
    caller = meshlib_grpc.caller()
    return f"hello {name}, asked by {caller.service_account if caller else 'nobody'}"


async def count(number: str, context: grpc.aio.ServicerContext) -> AsyncIterator[str]:
    """Counts, if it is given a number."""
    if not number.isdecimal():
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{number!r} is no number")
    for each in range(int(number)):
        yield str(each)


HANDLERS = grpc.method_handlers_generic_handler(
    "greeter.Greeter",
    {
        "Hello": grpc.unary_unary_rpc_method_handler(hello, bytes.decode, str.encode),
        "Count": grpc.unary_stream_rpc_method_handler(count, bytes.decode, str.encode),
    },
)


async def main() -> None:
    """Serves until it is told to stop."""
    server = meshlib_grpc.aio_server(handlers=[HANDLERS])
    port = server.add_port(sys.argv[1])
    await server.start()
    print(f"serving at port {port}", flush=True)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(30)


if __name__ == "__main__":
    asyncio.run(main())
