"""The connector: where aiohttp asks for a connection, a request of the mesh is given an exchange instead.

Rules:

- `http://` URLs are the mesh's. What the session does around it stays aiohttp's: cookies, redirects, auth,
  tracing, middlewares, `raise_for_status`, the total time-out.
- `https://` and WebSockets (`ws_connect`) go out as aiohttp sends them, unless outboundTrafficPolicy keeps
  unknown hosts in. Connections that are encrypted follow the mesh's `tls` rules.
- A proxy (`proxy=`, or of the environment with `trust_env`) takes what goes to hosts that the mesh does not
  know, as aiohttp sends it, and nothing else.
- aiohttp repeats an idempotent request once after a lost connection. One of the mesh was tried as often as
  its rule says, so that repetition is told the same error and sends nothing.
"""

import asyncio
import contextlib
import math
from typing import Any
from urllib.request import getproxies
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import hdrs
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

import meshlib
from meshlib.bootstrap import SETTINGS
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.exchange import AsyncSender
from meshlib.dataplane.http.limits import NO_TIMEOUTS
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tcp.dial import adial, ais_ruled
from meshlib.errors import ConnectFailed, ControlError
from meshlib_aiohttp.errors import of_connection, of_control, of_failure
from meshlib_aiohttp.exchange import Exchange, asked, own_timeouts

_ROUTED = frozenset(("http",))


class Connector(aiohttp.TCPConnector):
    """For `aiohttp.ClientSession(connector=…)`."""

    def __init__(self, mesh: Mesh | None = None, **arguments: Any) -> None:
        """`mesh` None: the process's own. Else settings of `meshlib.connect` give this connector a mesh of
        its own. All other arguments are aiohttp.TCPConnector's; `keepalive_timeout` and `limit` hold for
        requests of the mesh too if they are given, and the mesh's own limits always.
        """
        given = {name: arguments.pop(name) for name in SETTINGS & arguments.keys()}
        if mesh is not None and given:
            raise TypeError(f"mesh and {min(given)} can't be given both")
        super().__init__(**arguments)
        self._own_mesh = meshlib.connect(**given) if given else None
        keep = 0.0 if self.force_close else arguments.get("keepalive_timeout")
        self.sender = AsyncSender(
            mesh or self._own_mesh or meshlib.default, math.inf if keep is None else keep
        )
        most = arguments.get("limit")
        self._places = asyncio.Semaphore(most) if most else None
        self._timeouts = NO_TIMEOUTS
        self._timeouts_of: aiohttp.ClientTimeout | None = None
        """What `_timeouts` was made of: mostly it is the session's own, each time."""
        self._failed: WeakKeyDictionary[asyncio.Task[Any], tuple[list[Trace], Exception]] | None = None

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """A connection, or what stands for one: see `Exchange`."""
        if req.proxy is not None and not await self._leaves(req):
            req.proxy = None
        if req.proxy is None:
            if req.url.scheme in _ROUTED and hdrs.UPGRADE not in req.headers:
                return await self._begin(req, traces, timeout)  # type: ignore[return-value]
            try:
                await self.sender.admit(asked(req, b""))
            except FlightFailed as error:
                raise of_failure(error, req) from None
        return await super().connect(req, traces, timeout)

    async def _leaves(self, req: ClientRequest) -> bool:
        try:
            return await self.sender.leaves(asked(req, b""), told=str(req.proxy) not in getproxies().values())
        except ControlError as error:
            raise of_control(error, req) from error

    async def _begin(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Exchange:
        if self._failed is not None:
            self._tell_again(traces)
        if timeout is not self._timeouts_of:
            self._timeouts, self._timeouts_of = own_timeouts(timeout), timeout
        exchange = Exchange(self, req, traces, self._timeouts)
        if self._places is not None:
            async with asyncio.timeout(timeout.connect if self._places.locked() else None):
                await self._places.acquire()
            exchange.add_callback(_Place(self._places, req.loop).leave)
        # aiohttp would write it to a connection.
        req.send = exchange.send  # type: ignore[method-assign, assignment]
        return exchange

    async def _create_direct_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,
        *,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
    ) -> tuple[asyncio.Transport, Any]:
        """aiohttp calls this for a new connection, also for one to a proxy."""
        mesh, host, port = self.sender.mesh, req.url.raw_host or "", req.port or 0
        own = client_error is aiohttp.ClientConnectorError and req.is_ssl()
        if not own or not await ais_ruled(mesh, host, port):
            return await super()._create_direct_connection(req, traces, timeout, client_error=client_error)
        name = (req.server_hostname or host).rstrip(".")
        try:
            async with asyncio.timeout(timeout.sock_connect):
                made = await adial(mesh, host, port, name)
        except ConnectFailed as error:
            raise of_connection(error, req) from error
        try:
            context = self._get_ssl_context(req)
            transport, protocol = await self._wrap_existing_connection(
                self._factory, timeout=timeout, ssl=context, sock=made, server_hostname=name, req=req
            )
        except BaseException:
            made.close()
            raise
        if (fingerprint := self._get_fingerprint(req)) is not None:
            try:
                fingerprint.check(transport)
            except aiohttp.ServerFingerprintMismatch:
                transport.close()
                raise
        return transport, protocol

    def note(self, traces: list[Trace], error: Exception) -> None:
        """Remembers what a request came to; aiohttp makes one such list for each call of the application."""
        task = asyncio.current_task()
        if task is not None:
            if self._failed is None:
                self._failed = WeakKeyDictionary()
            self._failed[task] = traces, error

    def _tell_again(self, traces: list[Trace]) -> None:
        task = asyncio.current_task()
        failed = None if task is None or self._failed is None else self._failed.pop(task, None)
        if failed is not None and failed[0] is traces:
            raise failed[1]

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Closes the connections, and the mesh if it is this connector's own."""
        try:
            await self.sender.aclose()
            await super().close(abort_ssl=abort_ssl)
        finally:
            if self._own_mesh is not None:
                await self._own_mesh.aclose()


class _Place:
    """One of so many requests at once (`limit`)."""

    __slots__ = ("_loop", "_places")

    def __init__(self, places: asyncio.Semaphore, loop: asyncio.AbstractEventLoop) -> None:
        self._places: asyncio.Semaphore | None = places
        self._loop = loop

    def leave(self) -> None:
        """Another may have it."""
        places, self._places = self._places, None
        if places is not None:
            places.release()

    def __del__(self) -> None:
        # A response dropped without being read or closed, on any thread; its connection is noticed by itself.
        if self._places is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._places.release)


def ClientSession(  # noqa: N802 - it is one: aiohttp does not want its class inherited from
    *args: Any, mesh: Mesh | None = None, **arguments: Any
) -> aiohttp.ClientSession:
    """An aiohttp.ClientSession in the mesh. `mesh` and settings of `meshlib.connect` are as of `Connector`,
    all other arguments aiohttp.ClientSession's; a `connector` given by the application wins.
    """
    given = {name: arguments.pop(name) for name in SETTINGS & arguments.keys()}
    if arguments.get("connector") is None:
        arguments["connector"] = Connector(mesh, **given)
    elif mesh is not None or given:
        raise TypeError("a connector is of one mesh: give it to meshlib_aiohttp.Connector")
    return aiohttp.ClientSession(*args, **arguments)
