"""External authorities that remember what they were shown, over HTTP and gRPC, and their documents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import grpc.aio

from meshlib.xds import pb

HTTP_CLUSTER, GRPC_CLUSTER = "outbound|8000||authz.mesh", "outbound|9000||authz.mesh"
PARTIAL = "x-envoy-auth-partial-body"


class Seen(NamedTuple):
    """What an authority was shown of a body."""

    body: bytes
    raw: bytes
    partial: str | None
    size: int | None
    """None: over HTTP nobody says it."""


class Authorities(NamedTuple):
    """Both of them; they let everybody in."""

    http: int
    grpc: int
    seen: list[Seen]

    def documents(self, **body: dict[str, Any]) -> str:
        """Providers `http-<name>` and `grpc-<name>` with these settings of the body, and their service."""
        providers = "".join(
            f"- name: {kind}-{name}\n"
            f"  {key}: {{service: authz.mesh, port: {port}, includeRequestBodyInCheck: {settings}}}\n"
            for name, settings in body.items()
            for kind, key, port in (("http", "envoyExtAuthzHttp", 8000), ("grpc", "envoyExtAuthzGrpc", 9000))
        )
        return f"""apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {{name: mesh}}
extensionProviders:
{providers}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: authz, namespace: foo}}
spec:
  hosts: [authz.mesh]
  resolution: STATIC
  ports: [{{number: 8000, name: http, protocol: HTTP}}, {{number: 9000, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {self.http}, grpc: {self.grpc}}}}}]
"""


@asynccontextmanager
async def authorities() -> AsyncIterator[Authorities]:
    """Both, on loopback."""
    seen: list[Seen] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = (line.partition(":") for line in head.decode().split("\r\n")[1:-2])
                headers = {name.lower(): value.strip() for name, _, value in lines}
                body = await reader.readexactly(int(headers["content-length"]))
                seen.append(Seen(body, b"", headers.get(PARTIAL), None))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def check(request: Any, _: object) -> Any:
        asked = request.attributes.request.http
        headers = dict(asked.headers)
        seen.append(Seen(asked.body.encode(), asked.raw_body, headers.get(PARTIAL), asked.size))
        return pb.CheckResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        check, pb.CheckRequest.FromString, lambda made: made.SerializeToString()
    )
    over_grpc = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})
    over_grpc.add_generic_rpc_handlers((service,))
    port = over_grpc.add_insecure_port("127.0.0.1:0")
    await over_grpc.start()
    over_http = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with over_http:
            yield Authorities(over_http.sockets[0].getsockname()[1], port, seen)
    finally:
        await over_grpc.stop(0)
