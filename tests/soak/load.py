"""Load in a process of its own: settings of `meshlib.connect` come as JSON, a line of JSON a second goes out.

Threads and tasks, connections that last and new ones, small requests, bodies both ways, and responses that
are given up.
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

import meshlib

URL = "http://reviews:9080"
BLOCK = b"x" * 30_000
THREADS, TASKS = 3, 8
PAUSE = 0.02
"""Seconds between two requests of one asker: the machine is others' as well."""
OFTEN = 25
"""Requests of a client that does not last."""


class Load:
    """What was asked, and what came of it."""

    def __init__(self, mesh: meshlib.Mesh) -> None:
        self.mesh = mesh
        self.answers = 0
        self.failures: list[str] = []
        self.end = threading.Event()
        self.tasks = 0

    def client(self) -> meshlib.Client:
        return meshlib.Client(mesh=self.mesh, base_url=URL, timeout=10)

    def async_client(self) -> meshlib.AsyncClient:
        return meshlib.AsyncClient(mesh=self.mesh, base_url=URL, timeout=10)

    def took(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            self.answers += 1
        else:
            self.fail(f"{response.status_code} {response.text[:200]}")

    def fail(self, what: str) -> None:
        known = {one.size for one in self.mesh.view.endpoints.values()}
        self.failures.append(f"{time.time():.2f} {what}; {known} endpoints known")

    def by_threads(self, often: bool) -> None:
        while not self.end.is_set():
            with self.client() as client:
                for number in range(OFTEN if often else sys.maxsize):
                    if self.end.wait(PAUSE):
                        return
                    try:
                        self.ask(client, number)
                    except Exception as error:
                        self.fail(repr(error))

    def ask(self, client: httpx.Client, number: int) -> None:
        match number % 5:
            case 0 | 1:
                self.took(client.get("/x", headers={"x-user": str(number % 7)}))
            case 2:
                self.took(client.post("/x", content=BLOCK))
            case 3:
                self.took(client.put("/x", content=iter([BLOCK, BLOCK])))
            case _:
                with client.stream("GET", "/x") as response:
                    self.took_head(response)

    def took_head(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            self.answers += 1
        else:
            self.fail(f"{response.status_code}")

    async def by_tasks(self, often: bool) -> None:
        while not self.end.is_set():
            async with self.async_client() as client:
                for number in range(OFTEN if often else sys.maxsize):
                    await asyncio.sleep(PAUSE)
                    if self.end.is_set():
                        return
                    try:
                        await self.ask_async(client, number)
                    except Exception as error:
                        self.fail(repr(error))

    async def ask_async(self, client: httpx.AsyncClient, number: int) -> None:
        match number % 6:
            case 0 | 1:
                self.took(await client.get("/x", headers={"x-user": str(number % 7)}))
            case 2:
                self.took(await client.post("/x", content=BLOCK))
            case 3:
                self.took(await client.put("/x", content=_stream()))
            case 4:
                async with client.stream("GET", "/x") as response:
                    self.took_head(response)
            case _:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await client.get("/x")
                        self.answers += 1

    async def all_tasks(self) -> None:
        tasks = [asyncio.create_task(self.by_tasks(number == 0)) for number in range(TASKS)]
        while not self.end.is_set():
            await asyncio.sleep(0.1)
            self.tasks = len(asyncio.all_tasks())
        await asyncio.gather(*tasks)

    def tell(self) -> None:
        told = {
            "at": time.time(),
            "answers": self.answers,
            "failures": len(self.failures),
            "rss_kb": _rss_kb(),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "tasks": self.tasks,
        }
        print(json.dumps(told), flush=True)


async def _stream() -> AsyncIterator[bytes]:
    yield BLOCK
    yield BLOCK


def _rss_kb() -> int:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1])


def main() -> None:
    """Runs until standard input ends; the last line has the failures themselves."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    with meshlib.connect(settings.pop("control"), **settings) as mesh:
        load = Load(mesh)
        threads = [threading.Thread(target=load.by_threads, args=(number == 0,)) for number in range(THREADS)]
        threads.append(threading.Thread(target=lambda: asyncio.run(load.all_tasks())))
        for thread in threads:
            thread.start()
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        while not ended.wait(1.0):
            load.tell()
        load.end.set()
        for thread in threads:
            thread.join(20)
        load.tell()
        print(json.dumps({"failed": load.failures}), flush=True)


if __name__ == "__main__":
    main()
