"""A gRPC server that answers with its own name: the upstream of gRPC tests."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc


@contextmanager
def greeter(name: str) -> Iterator[int]:
    """Serves `/greeter.Greeter/Hello` on a free loopback port, which it gives."""
    server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix=f"greeter-{name}"))
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: name.encode())
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("greeter.Greeter", {"Hello": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
