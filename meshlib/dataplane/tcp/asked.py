"""What an application asks for when it connects: the same for sockets and for streams."""

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from meshlib.core import tcp
from meshlib.core.balance.dns import is_address
from meshlib.core.ledger import Ledger
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Dice, Failed, Failure
from meshlib.core.view import View
from meshlib.dataplane import context
from meshlib.dataplane.tcp.link import Watched, bury
from meshlib.dataplane.tls import BadFile, Contexts, NotTrusted, words
from meshlib.errors import ConfigError
from meshlib.values import dataclass

if TYPE_CHECKING:
    from meshlib.dataplane.network import Network
    from meshlib.dataplane.telemetry.watch import Telemetry


class Meshed(Protocol):
    """What connections ask of a Mesh."""

    clock: Callable[[], float]
    network: "Network | None"

    @property
    def dice(self) -> Dice:
        """Chance."""
        ...

    def prepare(self, name: str) -> View:
        """Waits until it is known what to do with connections to `host:port`."""
        ...

    async def aprepare(self, name: str) -> View:
        """The same for asyncio."""
        ...

    @property
    def ledger(self) -> Ledger:
        """What was learned."""
        ...

    @property
    def telemetry(self) -> "Telemetry":
        """Who is told."""
        ...

    @property
    def contexts(self) -> Contexts | None:
        """TLS by the workload's certificate."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One connection that an application wants."""

    called: tcp.Called

    @classmethod
    def of(cls, host: str, port: int, name: str | None) -> "Asked":
        """`name`: of the server, which the application asks for by TLS; None: the host, if it is a name.

        ValueError: there is no such port.
        """
        if not host or not 0 < port < 65536:
            raise ValueError(f"{host}:{port} can't be connected to")
        literal = is_address(host)
        target = f"[{host.lower()}]:{port}" if ":" in host else f"{host.lower()}:{port}"
        said = ("" if literal else host) if name is None else name
        return cls(tcp.Called(target, host, port, said, literal))

    def flow(self, mesh: Meshed, view: View, seconds: float | None) -> tcp.Flow:
        """The decisions about it. `seconds`: in which the application wants it; None: whenever.

        It is made for the request that is being served here, if one is. ConfigError: the mesh has a network
        that carries requests only.
        """
        if mesh.network is not None:
            raise ConfigError(
                f"{self.called.target}: this mesh sends requests only, and has no connections to hand out"
            )
        bury()
        limits = [one for one in (seconds, context.time_left()) if one is not None]
        return tcp.flow(self.called, view, mesh.ledger, mesh.clock, mesh.dice, min(limits, default=None))

    def server_name(self, tls: ClientTls) -> str:
        """Whom the mesh's own TLS asks for: the policy's name, else the host, if it is one (RFC 6066, 3)."""
        return tls.sni or ("" if self.called.literal else self.called.host)

    def watched(self, mesh: Meshed) -> Watched | None:
        """Who wants to be told."""
        from meshlib.dataplane.telemetry.tcp import watch

        return watch(mesh.telemetry, self.called)


def seconds_of(connect: tcp.Connect, clock: Callable[[], float]) -> float:
    """How long a try may take; none at all: its time is over."""
    if connect.deadline is None:
        return connect.seconds
    return max(0.0, min(connect.seconds, connect.deadline - clock()))


def unspoken(connect: tcp.Connect) -> Failed | None:
    """Why its endpoint can't be asked for the tunnel that is wanted; None: it can."""
    if connect.tunnel is None or connect.upstream.http2 is None:
        return None
    detail = (
        "the proxy's port is one of HTTP/2, and a tunnel is asked for by HTTP/1.1: name it `http` or `tcp`"
    )
    return Failed(Failure.CONNECT_FAILED, detail)


def failed(error: Exception, seconds: float) -> Failed:
    """What the error of a try in that time means."""
    if isinstance(error, TimeoutError):
        return Failed(Failure.CONNECT_TIMED_OUT, f"no connection within {seconds:g} s")
    if isinstance(error, ssl.SSLError | NotTrusted | BadFile):
        return Failed(Failure.CONNECT_FAILED, f"TLS: {words(error)}")
    return Failed(Failure.CONNECT_FAILED, str(error))
