"""External authorities that answer as the request's `x-case` says, over HTTP and gRPC."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio

from meshlib.xds import pb


@asynccontextmanager
async def scripted(http: Mapping[str, bytes], over_grpc: Mapping[str, Any]) -> AsyncIterator[tuple[int, int]]:
    """Their ports. `http` are responses as they stand on the wire, `over_grpc` CheckResponses, by case."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = (line.partition(":") for line in head.decode().lower().split("\r\n"))
                writer.write(http[next(value.strip() for name, _, value in lines if name == "x-case")])
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def check(request: Any, _: object) -> Any:
        return over_grpc[request.attributes.request.http.headers["x-case"]]

    handler = grpc.unary_unary_rpc_method_handler(
        check, pb.CheckRequest.FromString, lambda made: made.SerializeToString()
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with listening:
            yield listening.sockets[0].getsockname()[1], port
    finally:
        await server.stop(0)
