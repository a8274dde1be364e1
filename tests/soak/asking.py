"""The clients: what each asks, all of them the same, by their own library or by a plain one through Envoy.

Half of the requests go where the rules try again, half where they do not. Bodies go both ways, responses are
given up in the middle, requests are cut short. Some clients last, some do not.
"""

import asyncio
import contextlib
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from soak.reasons import Begun, Reason, of_error, of_response
from support.envoy import RealEnvoy

import meshlib

BLOCK = b"x" * 30_000
PAUSE = 0.15
"""Seconds between two requests of one asker: the machine is others' as well."""
OFTEN = 25
"""Requests of a client that does not last."""
LIMIT = 60.0
"""Seconds after which a client itself gives up: never, if all is well."""
SHORT = 0.002
"""Seconds that a request is given that is cut short."""
SERVICES = ("plain", "ratings", "reviews")
"""HTTP/1.1; HTTP/2; HTTP/1.1 by mutual TLS."""
GREETER = "greeter"
TRIED, BARE = "tried", "bare"


class Log(Protocol):
    """Where it is counted."""

    def begins(self, service: str, policy: str) -> int:
        """A request; the phase that it begins in."""

    def well(self) -> None:
        """One had a good response."""

    def failed(self, began: int, service: str, policy: str, failed: "Failed") -> None:
        """One failed."""


@dataclass(frozen=True)
class Failed:
    """Why, and in what words."""

    reason: Reason
    words: str


@dataclass(frozen=True)
class Given:
    """What clients are made with."""

    ports: Mapping[str, int]
    """Of HTTP and of gRPC: of the services, and of Envoy's listeners."""
    mesh: meshlib.Mesh | None
    envoy: RealEnvoy | None

    def url(self, ask: "Ask") -> str:
        """Where it goes."""
        host = ask.service if self.envoy is None else "127.0.0.1"
        return (
            f"http://{host}:{self.ports['http']}/{ask.policy if ask.shape != 'big' else f'big/{ask.policy}'}"
        )

    def headers(self, ask: "Ask") -> dict[str, str]:
        """For the rules."""
        own = {} if self.envoy is None else {"host": f"{ask.service}:{self.ports['http']}"}
        return {"x-policy": ask.policy, "x-user": str(ask.number % 7), **own}


@dataclass(frozen=True)
class Ask:
    """One request."""

    service: str
    policy: str
    shape: str
    number: int

    @property
    def method(self) -> str:
        """Of HTTP."""
        return {"post": "POST", "put": "PUT"}.get(self.shape, "GET")


SHAPES = ("get", "post", "get", "put", "big", "get", "head", "cut")


def asks(first: int, services: tuple[str, ...] = SERVICES) -> Iterator[Ask]:
    """For ever; services, policies and shapes in all combinations."""
    number = first
    while True:
        service = services[number % len(services)]
        policy = (TRIED, BARE)[number // len(services) % 2]
        shape = SHAPES[number // len(services) // 2 % len(SHAPES)]
        yield Ask(service, policy, shape, number)
        number += 1


@dataclass
class Seen:
    """A response, or its head if it was given up."""

    status: int
    headers: Any
    facts: Any = None
    body: bytes = b""


@contextlib.contextmanager
def begun() -> Iterator[None]:
    """What goes wrong inside goes wrong after the head."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        raise Begun(repr(error)) from error


class Asker:
    """Asks until it is told to end."""

    services = SERVICES

    def __init__(
        self, given: Given, counts: Log, end: threading.Event, first: int = 0, often: bool = False
    ) -> None:
        """`first`: where it begins in the row of what is asked; `often`: with new clients again and again."""
        self.given, self.counts, self.end, self.often = given, counts, end, often
        self.asks = asks(first, self.services)

    async def run(self) -> None:
        """All of it."""
        raise NotImplementedError

    def judge(self, began: int, ask: Ask, seen: Seen) -> None:
        """A response: is it good?"""
        if seen.status == 200:
            self.counts.well()
            return
        words = seen.body.decode("utf-8", "replace")[:300]
        reason = of_response(seen.headers, words, seen.facts)
        self.counts.failed(
            began, ask.service, ask.policy, Failed(reason, f"{seen.status} {words} {seen.facts}")
        )

    def lost(self, began: int, ask: Ask, error: Exception) -> None:
        """No response, or no whole one."""
        self.counts.failed(began, ask.service, ask.policy, Failed(of_error(error), f"{ask} {error!r}"))


class Threaded(Asker):
    """A client that blocks, on a thread."""

    async def run(self) -> None:
        ended = asyncio.get_running_loop().create_future()

        def whole() -> None:
            try:
                self._run()
            except BaseException as error:
                ended.get_loop().call_soon_threadsafe(ended.set_exception, error)
            else:
                ended.get_loop().call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=whole, daemon=True).start()
        await ended

    def _run(self) -> None:
        while not self.end.is_set():
            with self.client() as client:
                for _ in range(OFTEN if self.often else sys.maxsize):
                    if self.end.wait(PAUSE):
                        return
                    ask = next(self.asks)
                    if ask.shape != "cut":
                        self._ask(client, ask)

    def _ask(self, client: Any, ask: Ask) -> None:
        began = self.counts.begins(ask.service, ask.policy)
        content: Any = {"post": BLOCK, "put": iter([BLOCK, BLOCK])}.get(ask.shape)
        try:
            self.judge(began, ask, self.send(client, ask, content))
        except Exception as error:
            self.lost(began, ask, error)

    def client(self) -> Any:
        """A new one."""
        raise NotImplementedError

    def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        """One request; Begun: it had a head."""
        raise NotImplementedError


class Tasked(Asker):
    """A client of tasks."""

    async def run(self) -> None:
        while not self.end.is_set():
            async with self.client() as client:
                for _ in range(OFTEN if self.often else sys.maxsize):
                    await asyncio.sleep(PAUSE)
                    if self.end.is_set():
                        return
                    await self._ask(client, next(self.asks))

    async def _ask(self, client: Any, ask: Ask) -> None:
        if ask.shape == "cut":
            with contextlib.suppress(TimeoutError, Exception):
                async with asyncio.timeout(SHORT):
                    await self.send(client, ask, None)
            return
        began = self.counts.begins(ask.service, ask.policy)
        content: Any = {"post": BLOCK, "put": _streamed()}.get(ask.shape)
        try:
            self.judge(began, ask, await self.send(client, ask, content))
        except Exception as error:
            self.lost(began, ask, error)

    def client(self) -> Any:
        """A new one."""
        raise NotImplementedError

    async def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        """One request; Begun: it had a head."""
        raise NotImplementedError


async def _streamed() -> AsyncIterator[bytes]:
    yield BLOCK
    yield BLOCK


Made = Callable[[Given, Log, threading.Event], Asker]
MANY = 4
"""Askers of one kind; the first makes a new client again and again."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "httpx in tasks": ("by_httpx.HttpxTasks",),
    "httpx in threads": ("by_httpx.Httpx",),
    "requests": ("by_requests.Requests",),
    "aiohttp": ("by_aiohttp.Aiohttp",),
    "gRPC": ("by_grpc.Grpc",),
    "envoy": ("by_httpx.HttpxTasks", "by_grpc.Grpc"),
}
"""Whose clients a process has, by its name; it loads no other library."""


def askers(kind: str) -> list[Made]:
    """What makes those of a process of that name."""
    found: list[Made] = []
    for name in KINDS[kind]:
        module, _, client = name.partition(".")
        found += _several(getattr(importlib.import_module(f"soak.{module}"), client))
    return found


def _several(kind: type[Asker]) -> list[Made]:
    def made(number: int) -> Made:
        return lambda given, counts, end: kind(given, counts, end, number * 11, number == 0)

    return [made(number) for number in range(MANY)]
