"""A server joins the mesh: over Envoy's health discovery service, for as long as its process lives.

Rules:

- The first message says who it is (node metadata NAMESPACE, SERVICE_ACCOUNT, LABELS, PORTS, LOCALITY,
  WEIGHT); then its endpoints are reported HEALTHY, again at each interval that control asks for.
- A lost stream is opened again for ever, from a daemon thread; the same registration returns.
- Who is told how often to report, again on the same stream, asks which roots are trusted now: a process that
  only registers has no other way to hear of them.
- Who does not serve yet reports DRAINING until `serve`: it is known, and nobody is sent to it.
- `drain` reports DRAINING and waits a moment, so that clients stop sending; `close` drains and leaves.
  At the end of the process it drains by itself. Signals are the application's: on SIGTERM call
  `drain()`, stop accepting, then `close()`; most servers do so in their shutdown hook.
"""

import atexit
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.address import own_address
from meshlib.dataplane.ads import backoff
from meshlib.dataplane.grpc_stream import Kept
from meshlib.dataplane.mesh import identity, secured
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.client_stream import ProtocolError
from meshlib.xds.names import MUTUAL, TLS_MODE_LABEL
from meshlib.xds.node import Client, Flavour, Locality, to_node

if TYPE_CHECKING:
    from meshlib.dataplane.certs import Certs

log = logging.getLogger(__name__)

_HEALTHY, _DRAINING = 1, 3
_LONGEST_INTERVAL = 30.0
_LONGEST_BACKOFF = 1.0


class Registration:
    """A registration that is kept up; close it, or use it in `with`. A fork's child starts without it."""

    def __init__(
        self,
        settings: Bootstrap,
        keep: Callable[[str, str, str, "Registration"], Kept] | None = None,
        *,
        mutual_tls: bool = False,
        certs: "Certs | None" = None,
        place: Mapping[str, Any] | None = None,
        serving: bool = True,
    ) -> None:
        """Starts at once, and waits for nothing; `keep` None: on a stream to the control service.

        `mutual_tls`: whatever listens at `ports` takes Istio's mutual TLS, so clients of the mesh speak it.
        A plain application server does not. A node registers others by its own `certs`, and says in which
        `place` they are: more metadata. `serving` False: nobody is sent to it before `serve`.

        ConfigError: `ports` is missing, or has no address.
        """
        if not settings.ports:
            raise ConfigError(
                'ports: found nothing; needed is what this process serves, such as {"http": 9080}'
            )
        self._settings = settings
        self.address = settings.address or ("127.0.0.1" if settings.local else own_address(settings.control))
        """The IP address at which others reach this process."""
        self._node = _node(settings, mutual_tls, place or {})
        self._lock = threading.RLock()
        self._joined = threading.Event()
        self._left = threading.Event()
        self._serving, self._draining = serving, False
        self._introduced = False
        self._due = True
        self._interval = _LONGEST_INTERVAL
        self._attempts = 0
        self._owner = os.getpid()
        self._certs = (certs or identity(settings)) if keep is None else None
        if self._certs is not None:
            self._certs.use()
        keep = keep or secured(self._certs)
        self._kept = keep("meshlib-register", settings.control, pb.HDS, self)
        self._kept.start()
        atexit.register(self.close)
        fork.watch(self)

    def __repr__(self) -> str:
        ports = ", ".join(f"{name}={number}" for name, number in self._settings.ports)
        state = "joined" if self.joined else "joining"
        state = "closed" if self._left.is_set() else "draining" if self._draining else state
        return f"<Registration {self._settings.service_account} at {self.address} {ports}: {state}>"

    @property
    def joined(self) -> bool:
        """Whether the control service has taken it, on the stream that is open now."""
        return self._joined.is_set()

    def wait(self, timeout: float) -> bool:
        """Waits until it has joined; False after that many seconds."""
        return self._joined.wait(timeout)

    def serve(self) -> None:
        """From now on it takes calls. Twice is once."""
        with self._lock:
            if self._serving:
                return
            self._serving = self._due = True
        self._kept.wake()

    def drain(self, seconds: float | None = None) -> None:
        """Says DRAINING, and waits so long (the setting `drain`, if None) that clients have heard of it."""
        with self._lock:
            if self._draining or self._left.is_set():
                return
            self._draining = self._due = True
        self._kept.wake()
        if self.joined and self._serving:
            self._left.wait(self._settings.drain if seconds is None else seconds)

    def close(self) -> None:
        """Drains and leaves. A second close does nothing; in a fork's child only the child forgets it."""
        if self._owner != os.getpid() or self._left.is_set():
            return
        self.drain()
        self._left.set()
        atexit.unregister(self.close)
        self._kept.close()
        if self._certs is not None:
            self._certs.leave()
        self._joined.clear()

    def __enter__(self) -> "Registration":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The talk, on the stream's thread

    def opened(self) -> None:
        """A new stream begins with who this is."""
        with self._lock:
            self._introduced, self._due = False, True

    def ask(self) -> Iterable[bytes]:
        """Who this is, at first; then how it is, when that changed and at each interval."""
        with self._lock:
            said = []
            if not self._introduced:
                message = pb.HealthCheckRequestOrEndpointHealthResponse()
                message.health_check_request.node.CopyFrom(self._node)
                said.append(message.SerializeToString())
            self._introduced, self._due = True, False
            return [*said, self._report().SerializeToString()]

    def take(self, message: bytes) -> None:
        """The control service has taken it, and says how often it wants to hear. ProtocolError."""
        try:
            specifier = pb.HealthCheckSpecifier.FromString(message)
        except DecodeError:
            raise ProtocolError("a message that can't be decoded") from None
        self._interval = min(max(pb.seconds(specifier.interval), 1.0), _LONGEST_INTERVAL)
        self._attempts = 0
        if self._joined.is_set() and self._certs is not None:
            self._certs.look()
        self._joined.set()

    def pause(self) -> float:
        """Seconds between two reports."""
        return self._interval

    def ended(self, why: str) -> float:
        """The stream is over. Gives the seconds to wait before the next."""
        joined = self._joined.is_set()
        self._joined.clear()
        if not self._left.is_set() and (joined or self._attempts == 0):
            why = why or "the control service ended the stream"
            log.warning("not registered at %s: %s; trying again", self._settings.control, why)
        self._attempts += 1
        return min(backoff(self._attempts), _LONGEST_BACKOFF)

    def _report(self) -> Any:
        message = pb.HealthCheckRequestOrEndpointHealthResponse()
        for _, number in self._settings.ports:
            health = message.endpoint_health_response.endpoints_health.add()
            health.health_status = _HEALTHY if self._serving and not self._draining else _DRAINING
            health.endpoint.address.socket_address.address = self.address
            health.endpoint.address.socket_address.port_value = number
        return message

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The registration stays the parent's: it is the parent that serves under it."""
        self._lock = threading.RLock()
        self._joined, self._left = threading.Event(), threading.Event()
        self._left.set()
        self._kept.after_fork_in_child()


def _node(settings: Bootstrap, mutual_tls: bool, place: Mapping[str, Any]) -> Any:
    said = {TLS_MODE_LABEL: MUTUAL} if mutual_tls else {}
    client = Client(
        flavour=Flavour.MESHLIB,
        namespace=settings.namespace,
        service_account=settings.service_account,
        labels=tuple(sorted({**said, **dict(settings.labels)}.items())),
        locality=Locality.parse(settings.locality),
        # The same after a reconnect, another in every process.
        id=f"meshlib~{os.uname().nodename[:128]}~{os.getpid()}~{uuid.uuid4().hex[:12]}",
    )
    extra = {"PORTS": dict(settings.ports), "LOCALITY": settings.locality, "WEIGHT": settings.weight}
    return to_node(client, extra={**extra, **place})
