"""What all of Bookinfo's services share: health, counts, joining the mesh, and trouble on demand.

- `GET /healthz` says that the process serves.
- `GET /stats` says how many requests arrived, for whom, from whom, and how many of them were answered
  with made-up failures; housekeeping paths are not counted.
- `POST /slow?seconds=5` makes every later answer wait that long; `POST /fail?times=2&status=503`
  makes the next answers fail. Both exist so that a time-out or a retry can be seen; a real service
  has neither.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import meshlib

HOUSEKEEPING = {"/healthz", "/stats", "/slow", "/fail"}
LONGEST_DELAY = 60.0
FORWARDED = ("end-user", "user-agent", "x-request-id", "traceparent", "tracestate", "baggage")


class Workload:
    """One process of one version of one service."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.requests = 0
        self.users: Counter[str] = Counter()
        self.callers: Counter[str] = Counter()
        """Requests by who sent them, as its certificate says; `-` in plain text."""
        self.failed = 0
        self.delay = 0.0
        self._failures_due = 0
        self._failure_status = 503
        self.client: meshlib.AsyncClient
        """Through which this service calls others; there while the application runs."""

    def application(self, routes: Sequence[BaseRoute], mesh: meshlib.Mesh | None = None) -> Starlette:
        """The ASGI application: `routes` and the housekeeping. It calls others through `mesh`."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with meshlib.AsyncClient(mesh=mesh, timeout=30.0) as self.client:
                yield

        house = [
            Route("/healthz", self._healthz),
            Route("/stats", self._stats),
            Route("/slow", self._slow, methods=["POST"]),
            Route("/fail", self._fail, methods=["POST"]),
        ]
        app = Starlette(routes=[*house, *routes], lifespan=lifespan)
        app.add_middleware(_Counting, workload=self)
        return app

    async def arrive(self, user: str) -> int:
        """Counts a request, waits if this service was told to be slow; the status to fail with, or 0."""
        self.requests += 1
        self.users[user] += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if not self._failures_due:
            return 0
        self._failures_due -= 1
        self.failed += 1
        return self._failure_status

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"service": self.name, "version": self.version, "healthy": True})

    async def _stats(self, _: Request) -> Response:
        return JSONResponse(
            {
                "service": self.name,
                "version": self.version,
                "requests": self.requests,
                "users": dict(self.users),
                "callers": dict(self.callers),
                "failed": self.failed,
                "slow": self.delay,
            }
        )

    async def _slow(self, request: Request) -> Response:
        seconds = _number(request, "seconds", 0.0, LONGEST_DELAY)
        if seconds is None:
            return _refused(f"seconds: a number from 0 to {LONGEST_DELAY:.0f} is needed")
        self.delay = seconds
        return JSONResponse({"seconds": seconds})

    async def _fail(self, request: Request) -> Response:
        times = _number(request, "times", 0, 1_000_000)
        status = _number(request, "status", 400, 599, default=503)
        if times is None or status is None:
            return _refused("times: a number from 0 to 1000000 is needed; status: one from 400 to 599")
        self._failures_due, self._failure_status = int(times), int(status)
        return JSONResponse({"times": self._failures_due, "status": self._failure_status})


class _Counting:
    """ASGI middleware: everything but the housekeeping is counted, and delayed or failed when told to."""

    def __init__(self, app: ASGIApp, workload: Workload) -> None:
        self._app = app
        self._workload = workload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HOUSEKEEPING or scope["path"].startswith("/static/"):
            await self._app(scope, receive, send)
            return
        user = dict(scope["headers"]).get(b"end-user", b"").decode("latin-1")
        caller = scope.get("state", {}).get("mesh")
        self._workload.callers[caller.principal if caller and caller.principal else "-"] += 1
        status = await self._workload.arrive(user)
        if status:
            told = JSONResponse({"error": f"{self._workload.name} was told to fail"}, status_code=status)
            await told(scope, receive, send)
            return
        await self._app(scope, receive, send)


def forwarded(headers: Mapping[str, str], **more: str) -> dict[str, str]:
    """The headers of an incoming request that travel on with the calls made for it, and `more`."""
    return {name: headers[name] for name in FORWARDED if name in headers} | more


def _number(
    request: Request, name: str, lowest: float, highest: float, default: float | None = None
) -> float | None:
    try:
        value = float(request.query_params[name]) if name in request.query_params else default
    except ValueError:
        return None
    return value if value is not None and lowest <= value <= highest else None


def _refused(why: str) -> Response:
    return JSONResponse({"error": why}, status_code=400)
