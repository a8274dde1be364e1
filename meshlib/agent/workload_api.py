"""The SPIFFE Workload API on a Unix socket: any SPIFFE client gets its workload's certificate, and the roots.

    workload ──Unix socket──► here: which process is it? ──private socket──► gRPC

Rules (SPIFFE Workload API):

- Nobody shows a credential: who calls is told by the kernel, see `callers`, and looked at again with each
  answer. Who is no workload of this node gets nothing (PERMISSION_DENIED), nor does who is no more.
- A call without the header `workload.spiffe.io: true` is refused: somebody may have been tricked into it.
- Certificates and roots are sent when asked for, and again when they are others.
- JWT-SVIDs are not there: UNIMPLEMENTED.
- Bounded: connections, those of one user in one network namespace, calls of a connection, sizes.
"""

import asyncio
import contextlib
import itertools
import logging
import socket as sockets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from cryptography.hazmat.primitives import serialization

from meshlib.agent.callers import Enrolled, Namespace, Process
from meshlib.agent.folder import has_room, own_folder
from meshlib.agent.secrets import Svid
from meshlib.agent.workload_messages import message
from meshlib.errors import ConfigError
from meshlib.identity.keys import load_key
from meshlib.identity.pem import load_bundle, to_der
from meshlib.identity.spiffe import SCHEME, SpiffeId

log = logging.getLogger(__name__)

SERVICE = "SpiffeWorkloadAPI"
HEADER = ("workload.spiffe.io", "true")
LOOK_SECONDS = 1.0
CONNECTIONS, OF_ONE = 4096, 64
CALLS = 16
_CHUNK = 16 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_concurrent_streams", CALLS),
    ("grpc.max_metadata_size", 8 * 1024),
)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Answer: TypeAlias = Callable[[tuple[tuple[SpiffeId, Svid], ...]], Any]


class WorkloadApi:
    """Serves at a socket; `async with` starts and stops it."""

    def __init__(
        self,
        socket: Path,
        enrolled: Callable[[], Iterable[Enrolled]],
        svid: Callable[[SpiffeId], Svid | None],
    ) -> None:
        """`enrolled` are the workloads of this node now, `svid` a workload's certificate in force."""
        self._socket, self._enrolled, self._svid = socket, enrolled, svid
        self._names = itertools.count(1)
        self._processes: dict[str, Process] = {}
        """By gRPC's name of their connections."""
        self._of_one: Counter[tuple[int, Namespace | None]] = Counter()
        self._stack = contextlib.AsyncExitStack()
        self._folder = Path()
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "WorkloadApi":
        """ConfigError: it can't be served here."""
        if sys.platform != "linux":
            raise ConfigError("the SPIFFE Workload API is served on Linux only: its kernel says who calls")
        async with contextlib.AsyncExitStack() as stack:
            self._folder = stack.enter_context(own_folder("workload-api"))
            has_room(self._folder)
            server = grpc.aio.server(options=_OPTIONS)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._methods()),))
            server.add_insecure_port(f"unix:{self._folder / 'grpc'}")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            stack.push_async_callback(self._end_pipes)
            try:
                listening = await asyncio.start_unix_server(self._take, self._socket, limit=_CHUNK)
                stack.callback(self._socket.unlink, missing_ok=True)
                stack.callback(listening.close)
                self._socket.chmod(0o666)  # who may what, the kernel tells
            except OSError as error:
                raise ConfigError(f"{self._socket}: {error.strerror or error}") from None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Connections

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio made one
        self._pipes.add(task)
        try:
            with contextlib.closing(Process(writer.get_extra_info("socket"))) as process:
                whose = process.uid, process.namespace()
                if len(self._pipes) > CONNECTIONS or self._of_one[whose] >= OF_ONE:
                    log.warning("a connection of %r is refused: there are too many", process)
                    return
                self._of_one[whose] += 1
                try:
                    await self._pipe(process, reader, writer)
                finally:
                    self._of_one[whose] -= 1
                    self._of_one += Counter()  # drops what is zero
        except OSError as error:
            log.info("a connection to the Workload API ended: %s", error)
        finally:
            self._pipes.discard(task)
            writer.close()

    async def _pipe(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Brings what is said to gRPC, under a name that is never used twice, and back."""
        path = self._folder / str(next(self._names))
        name = f"unix:{path}"
        made = sockets.socket(sockets.AF_UNIX)
        made.setblocking(False)
        try:
            made.bind(str(path))
            self._processes[name] = process
            await asyncio.get_running_loop().sock_connect(made, str(self._folder / "grpc"))
            inside, outside = await asyncio.open_unix_connection(sock=made, limit=_CHUNK)
            try:
                ways = [
                    asyncio.create_task(_bring(reader, outside)),
                    asyncio.create_task(_bring(inside, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.wait(ways)
            finally:
                outside.close()
        finally:
            self._processes.pop(name, None)
            made.close()
            path.unlink(missing_ok=True)

    async def _end_pipes(self) -> None:
        for task in self._pipes:
            task.cancel()
        if self._pipes:
            await asyncio.wait(self._pipes)

    # Calls

    def _methods(self) -> dict[str, Any]:
        return {
            "FetchX509SVID": _stream(self._x509_svids),
            "FetchX509Bundles": _stream(self._x509_bundles),
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(_no_jwt),
            "FetchJWTBundles": _stream(_no_jwts),
            "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(_no_jwt),
        }

    async def _x509_svids(self, _: bytes, context: Context) -> AsyncIterator[bytes]:
        async for said in self._answers(context, _svids):
            yield said

    async def _x509_bundles(self, _: bytes, context: Context) -> AsyncIterator[bytes]:
        async for said in self._answers(context, _bundles):
            yield said

    async def _answers(self, context: Context, answer: Answer) -> AsyncIterator[bytes]:
        if HEADER not in [(name, value) for name, value in context.invocation_metadata() or ()]:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"the header {HEADER[0]}: {HEADER[1]} is missing"
            )
        last = b""
        while True:
            found = await self._found(context)
            if found:
                said = answer(found).SerializeToString(deterministic=True)
                if said != last:
                    last = said
                    yield said
            await asyncio.sleep(LOOK_SECONDS)

    async def _found(self, context: Context) -> tuple[tuple[SpiffeId, Svid], ...]:
        """The workloads that call, with their certificates; those that have none yet are left out."""
        process = self._processes.get(context.peer())
        who = () if process is None else process.among(self._enrolled())
        if not who:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this is no workload of the node")
        return tuple((one, svid) for one in who if (svid := self._svid(one)) is not None)


async def _bring(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


def _svids(found: tuple[tuple[SpiffeId, Svid], ...]) -> Any:
    made = message("X509SVIDResponse")()
    for _, svid in found:
        chain = to_der(svid.chain_pem)
        key = load_key(svid.key_pem).private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made.svids.add(
            spiffe_id=_name(svid),
            x509_svid=b"".join(chain),
            x509_svid_key=key,
            bundle=b"".join(to_der(svid.roots_pem)),
        )
    return made


def _bundles(found: tuple[tuple[SpiffeId, Svid], ...]) -> Any:
    made = message("X509BundlesResponse")()
    for _, svid in found:
        domain = SpiffeId.parse(_name(svid)).trust_domain
        made.bundles[f"{SCHEME}{domain}"] = b"".join(to_der(svid.roots_pem))
    return made


def _name(svid: Svid) -> str:
    """What the certificate says itself: the trust domain may be about to become another."""
    from cryptography import x509

    leaf = load_bundle(svid.chain_pem)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])


def _stream(handler: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(handler)


_JWT = "JWT-SVIDs are not issued in this mesh; X509-SVIDs are"


async def _no_jwt(_: bytes, context: Context) -> bytes:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _JWT)
    return b""


async def _no_jwts(_: bytes, context: Context) -> AsyncIterator[bytes]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _JWT)
    yield b""
