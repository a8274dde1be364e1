"""gRPC's health service (grpc.health.v1), tied to the server's place in the mesh."""

from typing import Any

from meshlib.errors import ConfigError


def _package() -> tuple[Any, Any, Any]:
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    except ImportError:
        raise ConfigError("health: it needs the extra: pip install 'meshlib[grpc-health]'") from None
    return health, health_pb2.HealthCheckResponse, health_pb2_grpc.add_HealthServicer_to_server


class Health:
    """What a server says of itself, as a whole (the service without a name). ConfigError: see above."""

    def __init__(self, *, tasks: bool = False) -> None:
        health, self._says, self._add = _package()
        self.servicer: Any = health.aio.HealthServicer() if tasks else health.HealthServicer()
        """gRPC's own; an application may `set` the state of its services."""

    def add_to(self, server: Any) -> None:
        """Serves it."""
        self._add(self.servicer, server)

    def serving(self) -> Any:
        """It serves, and clients are told."""
        return self.servicer.set("", self._says.SERVING)

    def leaving(self) -> Any:
        """All its services will end; no later word counts."""
        return self.servicer.enter_graceful_shutdown()
