"""gRPC's own xDS servers: argv are name=address pairs. They serve until the input ends.

Each method answers with the server's name, who calls by its certificate, and which certificate that is.
"""

import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

METHODS = ("Hello", "Admin", "Other")


def hello(name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        said = context.auth_context()
        names = [
            n.decode() for n in said.get("x509_subject_alternative_name", []) if n.startswith(b"spiffe:")
        ]
        certificate = b"".join(said.get("x509_pem_cert", []))
        return f"{name} {','.join(names)} {hashlib.sha256(certificate).hexdigest()[:12]}".encode()

    return answer


def main() -> None:
    servers = []
    for each in sys.argv[1:]:
        name, _, address = each.partition("=")
        server = grpc.server(ThreadPoolExecutor(2), xds=True)
        handlers = {m: grpc.unary_unary_rpc_method_handler(hello(name)) for m in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greeter.Greeter", handlers),))
        server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
        server.start()
        servers.append(server)
    sys.stdin.read()
    for server in servers:
        server.stop(None).wait()


if __name__ == "__main__":
    main()
