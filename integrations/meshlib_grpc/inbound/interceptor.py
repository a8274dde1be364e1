"""A server's interceptor for threads: who may call, and what a handler's calls inherit.

Rules:

- It stands before all other interceptors. These decide by metadata, so they are shown none that a caller may
  not say of itself. That a call was let in they know when its handler runs.
- gRPC gives messages as bytes here: no code of the application, its deserializers among it, runs for who is
  not let in.
- That a method is not there is told to who may ask for it.
"""

from collections.abc import Callable
from typing import Any

import grpc

from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.inbound.arrival import believed
from meshlib_grpc.inbound.guarded import Guarded, guarded
from meshlib_grpc.inbound.judging import Judge
from meshlib_grpc.inbound.peers import Met

_MOST_KEPT = 4096


class Kept:
    """What stands before each handler, made once."""

    def __init__(self, judge: Judge, make: Callable[[Judge, str, Any], Any]) -> None:
        self._judge = judge
        self._make = make
        self._made: dict[str, tuple[Any, Any]] = {}
        """By method: its handler, and what stands before it."""

    def of(self, method: str, handler: Any) -> Any:
        """The guarded handler."""
        found = self._made.get(method)
        if found is not None and found[0] is handler:
            return found[1]
        if len(self._made) >= _MOST_KEPT:
            self._made.clear()
        made = self._make(self._judge, method, handler)
        self._made[method] = handler, made
        return made


class ServerInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.server(…, interceptors=[…])`, the first of them. Thread-safe."""

    def __init__(self, mesh: Mesh | None = None, port: int | None = None, met: Met | None = None) -> None:
        """See `Judge`."""
        self._judge = Judge(mesh, port, met)
        self._kept = Kept(self._judge, guarded)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """gRPC's: what is run for a call."""
        handler, method = continuation(believed(handler_call_details)), handler_call_details.method
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(Guarded(self._judge, method).absent)
        return self._kept.of(method, handler)
