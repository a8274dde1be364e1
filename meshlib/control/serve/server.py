"""The control server: discovery, registration, load reports and status on one gRPC port.

Each stream has two tasks: one hears, one sends. A client that breaks the protocol gets a gRPC
status that says how, and only its own stream ends. When the server stops, every stream is ended with
UNAVAILABLE first, so that clients read why instead of a lost connection. Without TLS the server
listens on loopback only, unless it is told to do otherwise.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from meshlib.control.registration import Registration
from meshlib.control.serve.limits import GRPC_OPTIONS, STOP_GRACE_SECONDS
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.serve.registration import (
    REPORT_SECONDS,
    Joining,
    Registrar,
    RegistrationError,
    specifier,
)
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.server_stream import ProtocolError

log = logging.getLogger(__name__)

STATUS = "/meshlib.control.v1.Status/Get"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Stream: TypeAlias = Callable[[AsyncIterator[Any], Context], Coroutine[Any, Any, None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. ConfigError: it is neither."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or (":" in bare) != bracketed:
        raise ConfigError(f"listen address {text!r}: host:port or [v6]:port is needed")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen address {text!r}: port {port!r} is no number from 0 to 65535")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; a name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ControlServer:
    """Serves a hub. `start` and `stop` on the event loop that publishes to the hub."""

    def __init__(
        self,
        hub: Hub,
        listen: str,
        *,
        on_registrations: Callable[[tuple[Registration, ...]], None] = lambda _: None,
        status: Callable[[], dict[str, Any]] = dict,
        grace: float = 2.0,
        allow_plaintext: bool = False,
    ) -> None:
        """`listen` is `host:port`, port 0 for any; `grace` is in seconds.

        ConfigError: no such address, or not loopback and `allow_plaintext` is not set.
        """
        self._host, self._port = listen_address(listen)
        if not is_loopback(self._host):
            if not allow_plaintext:
                raise ConfigError(
                    f"listen address {listen!r} is reachable from other machines and the service has no TLS; "
                    "listen on 127.0.0.1 or set allow_plaintext"
                )
            log.warning(
                "PLAINTEXT on %s: whoever reaches it reads all configuration and may register", listen
            )
        self._hub = hub
        self._status = status
        self.registrar = Registrar(on_registrations, grace)
        self._streams = itertools.count(1)
        self._expiry: asyncio.TimerHandle | None = None
        self._server: grpc.aio.Server | None = None
        self._stopping = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Binds and serves. ConfigError: the port is taken or not ours to bind."""
        server = grpc.aio.server(options=GRPC_OPTIONS)
        server.add_generic_rpc_handlers(self._handlers())
        wanted = self.address
        try:
            self._port = server.add_insecure_port(wanted)
        except RuntimeError:
            self._port = -1
        if self._port <= 0:
            await server.stop(None)
            raise ConfigError(f"can't listen on {wanted}: {await _why_not(wanted)}")
        await server.start()
        self._server = server
        log.info("control service listens on %s", self.address)

    async def stop(self) -> None:
        """Ends all streams; clients keep what they have and come back to the next service."""
        self._stopping.set()
        if self._server is not None:
            if self._calls:
                await asyncio.wait(self._calls, timeout=STOP_GRACE_SECONDS)
            await self._server.stop(STOP_GRACE_SECONDS)
            self._server = None
        if self._expiry is not None:
            self._expiry.cancel()

    def _handlers(self) -> tuple["grpc.GenericRpcHandler[Any, Any]", ...]:
        struct = pb.Struct
        health = pb.HealthCheckRequestOrEndpointHealthResponse
        methods = {
            pb.ADS: _streaming(self._until_stopped(self._sotw), pb.DiscoveryRequest),
            pb.DELTA_ADS: _streaming(self._until_stopped(self._delta), pb.DeltaDiscoveryRequest),
            pb.HDS: _streaming(self._until_stopped(self._join), health),
            pb.LRS: _streaming(self._until_stopped(self._drain), pb.LoadStatsRequest),
            STATUS: grpc.unary_unary_rpc_method_handler(
                self._get_status, request_deserializer=_reader(struct), response_serializer=_bytes
            ),
        }
        services: dict[str, dict[str, Any]] = {}
        for path, handler in methods.items():
            _, service, method = path.split("/")
            services.setdefault(service, {})[method] = handler
        return tuple(grpc.method_handlers_generic_handler(name, found) for name, found in services.items())

    def _until_stopped(self, handler: Stream) -> Stream:
        async def handle(requests: AsyncIterator[Any], context: Context) -> None:
            talking = asyncio.ensure_future(handler(requests, context))
            stopping = asyncio.ensure_future(self._stopping.wait())
            if (call := asyncio.current_task()) is not None:  # it goes on until the status is sent
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            try:
                await asyncio.wait({talking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                ended = talking.done()
                talking.cancel()
                await asyncio.wait({talking})
            if ended:
                await talking
            else:
                context.set_code(grpc.StatusCode.UNAVAILABLE)
                context.set_details("the control service is stopping")

        return handle

    async def _sotw(self, requests: AsyncIterator[Any], context: Context) -> None:
        await self._discovery(requests, context, delta=False)

    async def _delta(self, requests: AsyncIterator[Any], context: Context) -> None:
        await self._discovery(requests, context, delta=True)

    async def _discovery(self, requests: AsyncIterator[Any], context: Context, delta: bool) -> None:
        connection = self._hub.opened(delta, context.peer())
        sending = asyncio.create_task(self._send(connection, context))
        try:
            async for request in requests:
                self._hub.heard(connection, _understood(request))
        except ProtocolError as error:
            log.warning("%s ended: %s", context.peer(), error)
            await context.abort(grpc.StatusCode[error.code], str(error))
        finally:
            self._hub.closed(connection)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AbortError):
                await sending

    async def _send(self, connection: Connection, context: Context) -> None:
        try:
            while True:
                for response in await self._hub.due(connection):
                    await context.write(response)
        except (grpc.aio.BaseError, grpc.aio.UsageError):
            log.debug("%s is gone", connection.peer)
        except Exception:
            # A stream that nobody sends on must end, so that its client comes back.
            log.exception("sending to %s failed", connection.peer)
            await context.abort(grpc.StatusCode.INTERNAL, "the control service failed on this stream")

    async def _join(self, requests: AsyncIterator[Any], context: Context) -> None:
        stream, joining = next(self._streams), Joining()
        try:
            async for message in requests:
                said = joining.received(_understood(message))
                if message.HasField("health_check_request"):
                    await context.write(specifier())
                else:
                    self.registrar.reported(stream, said, self._now())
        except RegistrationError as error:
            log.warning("registration of %s refused: %s", context.peer(), error)
            self.registrar.reported(stream, None, self._now())
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ProtocolError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))
        finally:
            self.registrar.ended(stream, self._now())
            self._await_expiry()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _await_expiry(self) -> None:
        """Arms the timer for the next grace that ends."""
        due = self.registrar.next_expiry
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if due is not None:
            self._expiry = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self.registrar.expire(self._now())
        self._await_expiry()

    async def _drain(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Load reports are taken and dropped; rarely, so that they cost little."""
        reply = pb.LoadStatsResponse(
            send_all_clusters=True, load_reporting_interval=pb.duration(6 * REPORT_SECONDS)
        )
        answered = False
        async for report in requests:
            if report is not None and not answered:
                answered = True
                await context.write(reply)

    async def _get_status(self, _request: Any, _context: Context) -> Any:
        reply = pb.Struct()
        reply.update(self._status())
        return reply


class _Garbage:
    """What came instead of a message."""


def _reader(cls: Any) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return cls.FromString(data)
        except DecodeError:
            return _Garbage()

    return read


def _understood(request: Any) -> Any:
    if isinstance(request, _Garbage):
        raise ProtocolError("a message that can't be decoded")
    return request


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _streaming(handler: Callable[..., Any], request: Any) -> Handler:
    return grpc.stream_stream_rpc_method_handler(
        handler, request_deserializer=_reader(request), response_serializer=_bytes
    )


async def _why_not(address: str) -> str:
    """Why an address can't be bound, in the words of the operating system."""
    host, port = listen_address(address)
    try:
        probe = await asyncio.start_server(lambda *_: None, host, port, reuse_address=True)
    except OSError as error:
        return error.strerror or str(error)
    probe.close()
    await probe.wait_closed()
    return "gRPC refused it"
