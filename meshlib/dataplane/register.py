"""A server joins the mesh: over Envoy's health discovery service, for as long as its process lives.

Rules:

- The first message says who it is (node metadata NAMESPACE, SERVICE_ACCOUNT, LABELS, PORTS, LOCALITY,
  WEIGHT); then its endpoints are reported HEALTHY, again at each interval that control asks for.
- A lost stream is opened again for ever, from a daemon thread; the same registration returns.
- `drain` reports DRAINING and waits a moment, so that clients stop sending; `close` drains and leaves.
  At the end of the process it drains by itself. Signals are the application's: on SIGTERM call
  `drain()`, stop accepting, then `close()`; most servers do so in their shutdown hook.
"""

import atexit
import ipaddress
import logging
import os
import queue
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.ads import backoff, open_channel
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.names import split_authority
from meshlib.xds.node import Client, Flavour, Locality, to_node

log = logging.getLogger(__name__)

_HEALTHY, _DRAINING = 1, 3
_LONGEST_INTERVAL = 30.0
_LONGEST_BACKOFF = 1.0


def register(settings: Bootstrap | None = None, **arguments: Any) -> "Registration":
    """Registers this process; arguments as of `bootstrap.bootstrap`, else the environment.

    `ports` (or MESHLIB_PORTS) is needed. ConfigError: it is missing, or something can't be used.
    """
    return Registration(settings or bootstrap(**arguments))


class Registration:
    """A registration that is kept up; close it, or use it in `with`. A fork's child starts without it."""

    def __init__(self, settings: Bootstrap) -> None:
        """Starts at once, and waits for nothing."""
        if not settings.ports:
            raise ConfigError(
                'ports: found nothing; needed is what this process serves, such as {"http": 9080}'
            )
        if settings.local:
            raise ConfigError(f"control: found the path {settings.control!r}; registering needs host:port")
        self._settings = settings
        self.address = settings.address or own_address(settings.control)
        """The IP address at which others reach this process."""
        self._node = _node(settings)
        self._closing = threading.Event()
        self._joined = threading.Event()
        self._requests: queue.SimpleQueue[Any] | None = None
        self._call: Any = None
        self._lock = threading.Lock()
        self._draining = False
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._start()
        atexit.register(self.close)
        fork.watch(self)

    def __repr__(self) -> str:
        ports = ", ".join(f"{name}={number}" for name, number in self._settings.ports)
        state = "closed" if self._closing.is_set() else "draining" if self._draining else "joining"
        if state == "joining" and self.joined:
            state = "joined"
        return f"<Registration {self._settings.service_account} at {self.address} {ports}: {state}>"

    @property
    def joined(self) -> bool:
        """Whether the control service has taken it, on the stream that is open now."""
        return self._joined.is_set()

    def wait(self, timeout: float) -> bool:
        """Waits until it has joined; False after that many seconds."""
        return self._joined.wait(timeout)

    def drain(self, seconds: float | None = None) -> None:
        """Says DRAINING, and waits so long (the setting `drain`, if None) that clients have heard of it."""
        with self._lock:
            if self._draining or self._closing.is_set():
                return
            self._draining = True
            self._report()
        if self.joined:
            self._closing.wait(self._settings.drain if seconds is None else seconds)

    def close(self) -> None:
        """Drains and leaves. A second close does nothing; in a fork's child only the child forgets it."""
        if self._owner != os.getpid() or self._closing.is_set():
            return
        self.drain()
        atexit.unregister(self.close)
        self._stop()

    def __enter__(self) -> "Registration":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meshlib-register", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._closing.set()
        with self._lock:
            self._hang_up()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(5.0)

    def _run(self) -> None:
        attempts = 0
        channel = open_channel(self._settings.control)
        try:
            while not self._closing.is_set():
                attempts = 1 if self._one_stream(channel, attempts) else attempts + 1
                self._closing.wait(min(backoff(attempts), _LONGEST_BACKOFF))
        finally:
            channel.close()

    def _one_stream(self, channel: Any, attempts: int) -> bool:
        """Joins and stays; whether it had joined when the stream ended."""
        import grpc

        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        interval = _LONGEST_INTERVAL
        with self._lock:
            if self._closing.is_set():
                return False
            message = pb.HealthCheckRequestOrEndpointHealthResponse()
            message.health_check_request.node.CopyFrom(self._node)
            requests.put(message)
            self._requests = requests
            open_stream = channel.stream_stream(
                pb.HDS,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.HealthCheckSpecifier.FromString,
            )
            self._call = open_stream(self._reports(requests, lambda: interval))
            self._report()
        why = "the control service ended the stream"
        try:
            for specifier in self._call:
                interval = min(max(pb.seconds(specifier.interval), 1.0), _LONGEST_INTERVAL)
                self._joined.set()
        except grpc.RpcError as error:
            why = f"{error.code().name}: {error.details()}"
        joined = self._joined.is_set()
        self._joined.clear()
        with self._lock:
            self._hang_up()
        if not self._closing.is_set() and (joined or attempts == 0):
            log.warning("not registered at %s: %s; trying again", self._settings.control, why)
        return joined

    def _reports(self, requests: "queue.SimpleQueue[Any]", interval: Any) -> Iterator[Any]:
        """What to send, and the last report again whenever nothing was sent for an interval."""
        while True:
            try:
                message = requests.get(timeout=interval())
            except queue.Empty:
                message = self._message()
            if message is None:
                return
            yield message

    def _report(self) -> None:
        if self._requests is not None:
            self._requests.put(self._message())

    def _message(self) -> Any:
        message = pb.HealthCheckRequestOrEndpointHealthResponse()
        for _, number in self._settings.ports:
            health = message.endpoint_health_response.endpoints_health.add()
            health.health_status = _DRAINING if self._draining else _HEALTHY
            health.endpoint.address.socket_address.address = self.address
            health.endpoint.address.socket_address.port_value = number
        return message

    def _hang_up(self) -> None:
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    # Fork

    def before_fork(self) -> None:
        """Ends the stream for a moment; the control service's grace keeps the endpoint."""
        if not self._closing.is_set() and self._thread is not None:
            self._stop()
            self._closing.clear()

    def after_fork_in_parent(self) -> None:
        """Joins again."""
        if not self._closing.is_set() and self._thread is None:
            self._start()

    def after_fork_in_child(self) -> None:
        """The registration stays the parent's: it is the parent that serves under it."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._closing.set()
        self._joined = threading.Event()


def own_address(control: str) -> str:
    """The address of the interface that leads to `control` (`host:port`). ConfigError: there is none."""
    host, port = split_authority(control, 15010)
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing
            found = ipaddress.ip_address(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"address: none is given, and {control} says nothing of ours ({error})") from None
    return str(found)


def _node(settings: Bootstrap) -> Any:
    client = Client(
        flavour=Flavour.MESHLIB,
        namespace=settings.namespace,
        service_account=settings.service_account,
        labels=settings.labels,
        locality=Locality.parse(settings.locality),
        # The same after a reconnect, another in every process.
        id=f"meshlib~{os.uname().nodename[:128]}~{os.getpid()}~{uuid.uuid4().hex[:12]}",
    )
    extra = {"PORTS": dict(settings.ports), "LOCALITY": settings.locality, "WEIGHT": settings.weight}
    return to_node(client, extra=extra)
