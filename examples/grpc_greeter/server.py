"""A greeter in the mesh, on threads: `python server.py 127.0.0.1:9080`."""

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

import meshlib_grpc


def hello(name: str, context: grpc.ServicerContext) -> str:
    """Greets, and says who asked."""
    caller = meshlib_grpc.caller()
    return f"hello {name}, asked by {caller.service_account if caller else 'nobody'}"


def count(number: str, context: grpc.ServicerContext) -> Iterator[str]:
    """Counts, if it is given a number."""
    if not number.isdecimal():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{number!r} is no number")
    yield from map(str, range(int(number)))


# What generated code would add: `add_GreeterServicer_to_server(Greeter(), server)`.
HANDLERS = grpc.method_handlers_generic_handler(
    "greeter.Greeter",
    {
        "Hello": grpc.unary_unary_rpc_method_handler(hello, bytes.decode, str.encode),
        "Count": grpc.unary_stream_rpc_method_handler(count, bytes.decode, str.encode),
    },
)

if __name__ == "__main__":
    server = meshlib_grpc.server(ThreadPoolExecutor(8), handlers=[HANDLERS])
    port = server.add_port(sys.argv[1])
    server.start()
    print(f"serving at port {port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(30))
    server.wait_for_termination()
