"""A control server on a thread of its own, over resources written by hand."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from support.ports import free_port

from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer
from meshlib.xds.node import Client
from meshlib.xds.snapshot import Resource


class HandMade:
    """A compiler that gives everything to everybody."""

    def __init__(self, version: str, resources: Iterable[Resource]) -> None:
        self.version = version
        self._resources = tuple(resources)

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        """All of them."""
        return self._resources


class Served:
    """`with Served(...) as served`: a control server at `served.address`."""

    def __init__(self, version: str, resources: Iterable[Resource] = (), port: int = 0) -> None:
        self._first = HandMade(version, resources)
        self._port = port or free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="served")
        self._started = threading.Event()
        self._end = asyncio.Event()
        self.hub: Hub
        self.address = ""
        self.registrations: list[Any] = []

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.hub = Hub()
        self.hub.publish(self._first)
        server = ControlServer(
            self.hub,
            f"127.0.0.1:{self._port}",
            on_registrations=self.registrations.append,
            grace=0.1,
            allow_plaintext=True,
        )
        await server.start()
        self.address = server.address
        self._started.set()
        await self._end.wait()
        await server.stop()

    def publish(self, version: str, resources: Iterable[Resource]) -> None:
        """Puts another configuration in force."""
        self._loop.call_soon_threadsafe(self.hub.publish, HandMade(version, resources))

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
