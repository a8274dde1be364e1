"""The secret discovery service on a Unix socket, for the Envoy beside the agent.

A stream asks for secrets by name and is sent them, and again whenever they are others. Who can open the
socket is told by its folder, which only this user can enter.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from meshlib.agent.answering import answers
from meshlib.agent.secrets import Secrets
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.server_stream import ProtocolError, ServerStream
from meshlib.xds.snapshot import Snapshot

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SecretServer:
    """Serves secrets at a socket; `async with` starts and stops it."""

    def __init__(self, secrets: Secrets, socket: Path) -> None:
        self._secrets, self._socket = secrets, socket
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> "SecretServer":
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=pb.DiscoveryRequest.FromString,
            response_serializer=pb.DiscoveryResponse.SerializeToString,
        )
        methods = {"StreamSecrets": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._socket.chmod(0o600)
        self._server = server
        return self

    async def __aexit__(self, *_: object) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)

    async def _stream(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        stream = ServerStream(delta=False)
        try:
            async for response in answers(stream, requests, lambda: self._now(stream)):
                yield response
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _now(self, stream: ServerStream) -> Snapshot:
        return Snapshot.of("1", self._secrets.of(stream.names(Kind.SECRET)))
