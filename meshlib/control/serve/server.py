"""The control server: discovery, registration, certificates, load reports and status on one gRPC port.

It speaks TLS and needs to know who calls; only the roots are for everyone. Without an authority it has to be
told to serve plaintext, and then asks nobody who he is. Each stream has two tasks: one hears, one sends. A
client that breaks the protocol gets a gRPC status that says how, and only its own stream ends. When the
server stops, every stream is ended with UNAVAILABLE first, so that clients read why instead of a lost
connection.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from meshlib.control.ca.kubernetes import KubernetesTokens
from meshlib.control.ca.tokens import JoinTokens
from meshlib.control.istio.meshconfig import domain_name
from meshlib.control.registration import Registration
from meshlib.control.serve.callers import Caller, Callers, Denied, operator, standing
from meshlib.control.serve.calls import Calls
from meshlib.control.serve.credentials import Authority, Credentials, server_names
from meshlib.control.serve.front import Front
from meshlib.control.serve.limits import (
    CUT_GRACE_SECONDS,
    CUT_SECONDS,
    GRPC_OPTIONS,
    RELOAD_SECONDS,
    STOP_GRACE_SECONDS,
)
from meshlib.control.serve.nodes import Nodes, NoNodes, Permissions, is_node
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.serve.registration import (
    REPORT_SECONDS,
    Joining,
    Registrar,
    RegistrationError,
    TooMany,
    specifier,
)
from meshlib.control.serve.signing import Signing
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import TRUST_ROOTS
from meshlib.xds.server_stream import ProtocolError

log = logging.getLogger(__name__)

STATUS = "/meshlib.control.v1.Status/Get"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handling: TypeAlias = Callable[[AsyncIterator[Any], Context, Caller], Coroutine[Any, Any, Any]]
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


@dataclass(frozen=True, slots=True)
class Security:
    """By whom callers are known, and who signs for them."""

    authority: Authority
    tokens: JoinTokens | None = None
    pods: KubernetesTokens | None = None
    nodes: Permissions = field(default_factory=NoNodes)
    """For which workloads which nodes may speak."""
    names: Sequence[str] = ()
    """Host names and addresses by which clients reach the server, besides the one that it listens at."""
    aliases: Sequence[str] = ()
    """Trust domains whose certificates are taken besides the authority's, as its own; until `adopt`."""
    root_namespace: str = "istio-system"
    """Its identities are operators; until `adopt`."""
    adopted: Callable[[str], None] = lambda _: None
    """Told of another root namespace that is in force now."""
    hosts: Callable[[SpiffeId], Sequence[str]] = lambda _: ()
    """The DNS names of an identity's certificate."""
    wall: Callable[[], float] = time.time
    changed: Callable[[], None] = lambda: None
    """Called when the authority's roots or issuer changed."""


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
        security: Security | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        """`listen` is `host:port`, port 0 for any; `grace` is in seconds.

        ConfigError: no such address; or not exactly one of `security` and `allow_plaintext`.
        """
        self._host, self._port = listen_address(listen)
        if security is None and not allow_plaintext:
            raise ConfigError(
                f"listen address {listen!r}: there is no TLS without an authority; give one, "
                "or set allow_plaintext"
            )
        if security is not None and allow_plaintext:
            raise ConfigError("allow_plaintext is for a service without authority; this one has one")
        if security is None:
            log.warning(
                "PLAINTEXT on %s: whoever reaches it reads all configuration and may register", listen
            )
        self._security = security
        self._aliases = tuple(domain_name(one) for one in security.aliases) if security is not None else ()
        self._root_namespace = security.root_namespace if security is not None else ""
        self._front: Front | None = None
        self._callers: Callers | None = None
        self._signing: Signing | None = None
        self._nodes: Nodes | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._hub = hub
        self._status = status
        self.registrar = Registrar(on_registrations, grace)
        self._streams = itertools.count(1)
        self._joiners: set[_Answers] = set()
        """To the servers that are registered."""
        self._expiry: asyncio.TimerHandle | None = None
        self._cut_at: float | None = None
        """When connections were cut off last."""
        self._server: grpc.aio.Server | None = None
        self._calls = Calls()

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def adopt(self, aliases: Sequence[str], root_namespace: str) -> None:
        """Other settings of the mesh are in force: for new calls, and for the connections there are."""
        if self._security is None:
            return
        self._aliases = tuple(domain_name(alias) for alias in aliases)
        if root_namespace != self._root_namespace:
            self._root_namespace = root_namespace
            self._calls.reconsider()
            try:
                self._security.adopted(root_namespace)
            except ConfigError as error:
                log.warning("operators are of namespace %s now; %s", root_namespace, error)

    def renewed(self, caller: Caller) -> bool:
        """Whether that workload, at that host, got a certificate that ends later than the one it showed."""
        if self._signing is None or caller.identity is None or caller.shown is None:
            return False
        return self._signing.newest_end(caller.identity, caller.address) > caller.shown.term.end

    async def start(self) -> None:
        """Binds and serves. ConfigError: the port is taken or not ours to bind."""
        server = grpc.aio.server(options=GRPC_OPTIONS)
        if self._security is not None:
            self._secure(self._security)
        server.add_generic_rpc_handlers(self._handlers())
        try:
            if self._front is None:
                await self._listen_plain(server)
            else:
                await self._listen_behind(server, self._front)
        except BaseException:
            await server.stop(None)
            raise
        self._server = server
        if self._security is not None:
            self._reloading = asyncio.create_task(self._reload(self._security))
        log.info("control service listens on %s", self.address)

    def _secure(self, by: Security) -> None:
        names = server_names(self._host, by.names)
        credentials = Credentials(by.authority, names, aliases=lambda: self._aliases, wall=by.wall)
        credentials.offer()  # what is wrong is told at the start
        self._front = Front(self._host, self._port, credentials, refused=self._calls.refused)
        self._callers = Callers(
            self._front.who,
            by.authority.trust_domain,
            aliases=lambda: self._aliases,
            joined=by.tokens,
            pods=by.pods,
            wall=by.wall,
        )
        self._nodes = Nodes(by.nodes, self._callers.own, lambda: self._root_namespace)
        self._signing = Signing(by.authority, self._nodes, by.tokens, hosts=by.hosts, wall=by.wall)

    async def _listen_plain(self, server: grpc.aio.Server) -> None:
        wanted = self.address
        try:
            self._port = server.add_insecure_port(wanted)
        except RuntimeError:
            self._port = -1
        if self._port <= 0:
            raise ConfigError(f"can't listen on {wanted}: {await _why_not(wanted)}")
        await server.start()

    async def _listen_behind(self, server: grpc.aio.Server, front: Front) -> None:
        server.add_insecure_port(front.private())
        await server.start()
        try:
            front.start()
        except OSError as error:
            await front.stop()
            raise ConfigError(f"can't listen on {self.address}: {error.strerror or error}") from None
        self._port = front.port

    async def _reload(self, by: Security) -> None:
        """Follows what changes at the authority: rotation, renewal, new plug-in files."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self._calls.lapsed(by.wall())
            if self._nodes is not None and self._nodes.changed():
                self._calls.reconsider()
            try:
                if by.authority.reload(by.wall()):
                    by.changed()
                    self._tell_servers()
                if self._front is not None and self._front.sweep():
                    self._cut_at = self._now()
            except Exception:
                log.exception("the authority can't be asked what changed; what was in force stays")

    async def stop(self) -> None:
        """Ends all streams; clients keep what they have and come back to the next service."""
        if self._reloading is not None:
            self._reloading.cancel()
        if self._front is not None:
            self._front.close_port()
        if self._server is not None:
            await self._calls.stop(STOP_GRACE_SECONDS)
            await self._server.stop(STOP_GRACE_SECONDS)
            self._server = None
        if self._front is not None:
            await self._front.stop()
        if self._expiry is not None:
            self._expiry.cancel()

    def _handlers(self) -> tuple["grpc.GenericRpcHandler[Any, Any]", ...]:
        struct = pb.Struct
        health = pb.HealthCheckRequestOrEndpointHealthResponse
        methods = {
            pb.ADS: _streaming(self._ended(self._sotw), pb.DiscoveryRequest),
            pb.DELTA_ADS: _streaming(self._ended(self._delta), pb.DeltaDiscoveryRequest),
            pb.HDS: _streaming(self._ended(self._join), health),
            pb.LRS: _streaming(self._ended(self._drain), pb.LoadStatsRequest),
            STATUS: _unary(self._ended(_once(self._get_status), unary=True), struct),
        }
        if self._signing is not None:
            create, roots = _once(self._create_certificate), _once(self._get_roots)
            methods[pb.CREATE_CERTIFICATE] = _unary(
                self._ended(create, unary=True), pb.IstioCertificateRequest
            )
            methods[TRUST_ROOTS] = _unary(self._ended(roots, unary=True, anyone=True), struct)
        services: dict[str, dict[str, Any]] = {}
        for path, handler in methods.items():
            _, service, method = path.split("/")
            services.setdefault(service, {})[method] = handler
        return tuple(grpc.method_handlers_generic_handler(name, found) for name, found in services.items())

    async def _caller(self, context: Context) -> Caller:
        """Denied: it is nobody."""
        if self._callers is None:
            return Caller(context.peer(), None)
        return await self._callers.of(context)

    def _ended(self, handler: Handling, *, unary: bool = False, anyone: bool = False) -> Any:
        """`handler` for a known caller, unless for anyone; ended from outside when `calls` say so."""

        async def handle(requests: AsyncIterator[Any], context: Context) -> Any:
            try:
                caller = Caller(context.peer(), None) if anyone else await self._caller(context)
                if not unary:
                    caller = standing(caller)
                return await self._calls.run(context.peer(), caller, handler(requests, context, caller))
            except (Denied, ProtocolError) as error:
                await context.abort(grpc.StatusCode[error.code], str(error))

        return handle

    async def _sotw(self, requests: AsyncIterator[Any], context: Context, caller: Caller) -> None:
        await self._discovery(requests, context, caller, delta=False)

    async def _delta(self, requests: AsyncIterator[Any], context: Context, caller: Caller) -> None:
        await self._discovery(requests, context, caller, delta=True)

    async def _discovery(
        self, requests: AsyncIterator[Any], context: Context, caller: Caller, delta: bool
    ) -> None:
        connection = self._hub.opened(delta, caller)
        sending = asyncio.create_task(self._send(connection, context))
        try:
            async for request in requests:
                if _understood(request).HasField("node") and self._nodes is not None:
                    self._calls.rests_on(self._nodes.follows(caller, request.node))
                self._hub.heard(connection, request)
        except (Denied, ProtocolError) as error:
            log.warning("%s ended: %s", caller.address, error)
            raise
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

    def _tell_servers(self) -> None:
        """Says once more how often to report: servers that follow no configuration ask for the roots then."""
        for answers in list(self._joiners):
            answers.give(specifier())

    async def _join(self, requests: AsyncIterator[Any], context: Context, caller: Caller) -> None:
        stream, joining, answers = next(self._streams), Joining(), _Answers(context)
        try:
            async for message in requests:
                if _understood(message).HasField("health_check_request") and self._nodes is not None:
                    if answers in self._joiners and is_node(caller.identity):
                        raise ProtocolError("a stream of a node is of one workload")
                    node = message.health_check_request.node
                    self._calls.rests_on(self._nodes.registers(caller, node))
                said = joining.received(message)
                if message.HasField("health_check_request"):
                    answers.give(specifier())
                    self._joiners.add(answers)
                else:
                    self.registrar.reported(stream, said, self._now(), _whose(caller))
        except RegistrationError as error:
            log.warning("registration of %s refused: %s", caller.address, error)
            self.registrar.reported(stream, None, self._now())
            code = "RESOURCE_EXHAUSTED" if isinstance(error, TooMany) else "INVALID_ARGUMENT"
            raise Denied(code, str(error)) from None
        except (Denied, ProtocolError) as error:
            log.warning("%s ended: %s", caller.address, error)
            raise
        finally:
            self._joiners.discard(answers)
            now = self._now()
            cut = self._cut_at is not None and now - self._cut_at < CUT_SECONDS
            self.registrar.ended(stream, now, CUT_GRACE_SECONDS if cut else None)
            self._await_expiry()
            await answers.end()

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

    async def _drain(self, requests: AsyncIterator[Any], context: Context, _: Caller) -> None:
        """Load reports are taken and dropped; rarely, so that they cost little."""
        reply = pb.LoadStatsResponse(
            send_all_clusters=True, load_reporting_interval=pb.duration(6 * REPORT_SECONDS)
        )
        answered, answers = False, _Answers(context)
        try:
            async for report in requests:
                if report is not None and not answered:
                    answered = True
                    answers.give(reply)
        finally:
            await answers.end()

    async def _get_status(self, _: Any, caller: Caller) -> Any:
        if self._security is not None:
            operator(standing(caller), self._root_namespace)
        reply = pb.Struct()
        reply.update(self._status())
        return reply

    async def _create_certificate(self, request: Any, caller: Caller) -> Any:
        if self._signing is None:
            raise Denied("UNIMPLEMENTED", "there is no authority")
        return await self._signing.create(request, caller)

    async def _get_roots(self, _request: Any, _caller: Caller) -> Any:
        return self._signing.roots() if self._signing is not None else pb.Struct()


def _whose(caller: Caller) -> str:
    """Who registers, from which machine."""
    host = caller.address.rpartition(":")[0]
    return f"{caller.identity} at {host}" if caller.identity is not None else host


class _Answers:
    """Says something while the client is heard on: who does not read is not waited for."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._giving: asyncio.Task[None] | None = None

    def give(self, message: Any) -> None:
        """Sends it, unless an earlier one is still on its way."""
        if self._giving is None or self._giving.done():
            self._giving = asyncio.create_task(self._give(message))

    async def _give(self, message: Any) -> None:
        with contextlib.suppress(grpc.aio.BaseError, grpc.aio.UsageError):
            await self._context.write(message)

    async def end(self) -> None:
        """Nothing more is sent. A status can't be, before gRPC has what was: clients would wait for ever."""
        if self._giving is not None:
            await asyncio.wait({self._giving}, timeout=STOP_GRACE_SECONDS / 2)
            self._giving.cancel()


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


def _once(handler: Callable[[Any, Caller], Coroutine[Any, Any, Any]]) -> Handling:
    """The handler of one request, which is read once it is known whose it is."""

    async def handle(requests: AsyncIterator[Any], _: Context, caller: Caller) -> Any:
        async for request in requests:
            return await handler(_understood(request), caller)
        raise ProtocolError("a request is missing")

    return handle


def _unary(handler: Callable[..., Any], request: Any) -> Handler:
    return grpc.stream_unary_rpc_method_handler(
        handler, request_deserializer=_reader(request), response_serializer=_bytes
    )


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
