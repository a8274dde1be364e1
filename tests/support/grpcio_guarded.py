"""gRPC's own xDS servers, asked in plain text: argv is JSON, a list of address and calls.

A call is a list of method and metadata; printed is, as JSON, the status of each call of each address. It
runs as a process of its own, because gRPC reads its xDS bootstrap once a process.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def main() -> None:
    wanted = json.loads(sys.argv[1])
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
    methods = dict.fromkeys(("Hello", "Admin"), handler)
    servers = []
    for address, _ in wanted:
        server = grpc.server(ThreadPoolExecutor(1), xds=True)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greeter.Greeter", methods),))
        server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
        server.start()
        servers.append(server)
    found = []
    for address, calls in wanted:
        statuses = []
        with grpc.insecure_channel(address) as channel:
            for method, metadata in calls:
                call = channel.unary_unary(f"/greeter.Greeter/{method}")
                try:
                    call(b"", metadata=list(map(tuple, metadata)), timeout=10, wait_for_ready=True)
                    statuses.append("OK")
                except grpc.RpcError as error:
                    statuses.append(error.code().name)
        found.append(statuses)
    print(json.dumps(found))
    for server in servers:
        server.stop(None).wait()


if __name__ == "__main__":
    main()
