"""A server's interceptor for tasks: who may call, and what a handler's calls inherit. See `interceptor`."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.inbound.aio_guarded import AsyncGuarded, guarded
from meshlib_grpc.inbound.arrival import believed
from meshlib_grpc.inbound.interceptor import Kept
from meshlib_grpc.inbound.judging import Judge
from meshlib_grpc.inbound.peers import Met


class AsyncServerInterceptor(aio.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.aio.server(interceptors=[…])`, the first of them."""

    def __init__(self, mesh: Mesh | None = None, port: int | None = None, met: Met | None = None) -> None:
        """See `Judge`."""
        self._judge = Judge(mesh, port, met)
        self._kept = Kept(self._judge, guarded)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """gRPC's: what is run for a call."""
        handler, method = await continuation(believed(handler_call_details)), handler_call_details.method
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(AsyncGuarded(self._judge, method).absent)
        return self._kept.of(method, handler)
