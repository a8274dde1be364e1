"""gRPC's own xDS server and client in one process: argv is the served address, the target and the
seconds for the call.

Prints `serving <peer's identity>` for an answered call, or the error of the call. It runs as a process of
its own, because gRPC reads its xDS bootstrap once a process.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.experimental


def main() -> None:
    address, target, seconds = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(2), xds=True)

    def hello(_request: bytes, context: Any) -> bytes:
        named = context.auth_context().get("x509_subject_alternative_name", [b"nobody"])
        return b"serving " + b",".join(named)

    handler = grpc.unary_unary_rpc_method_handler(hello)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("greeter.Greeter", {"Hello": handler}),)
    )
    server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    plain = grpc.experimental.insecure_channel_credentials()
    with grpc.secure_channel(target, grpc.xds_channel_credentials(plain)) as channel:
        try:
            hello = channel.unary_unary("/greeter.Greeter/Hello")
            print(hello(b"", timeout=float(seconds), wait_for_ready=True).decode())
        except grpc.RpcError as error:
            print(error.code().name, error.details())
    server.stop(None).wait()


if __name__ == "__main__":
    main()
