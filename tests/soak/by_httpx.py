"""httpx, in threads and in tasks."""

from typing import Any

import httpx
from soak.asking import LIMIT, Ask, Seen, Tasked, Threaded, begun

import meshlib


class Httpx(Threaded):
    """httpx.Client."""

    def client(self) -> Any:
        return meshlib.Client(mesh=self.given.mesh, timeout=LIMIT)

    def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        headers = self.given.headers(ask)
        with client.stream(ask.method, self.given.url(ask), headers=headers, content=content) as response:
            seen = Seen(response.status_code, response.headers, response.extensions.get("meshlib"))
            if ask.shape != "head" or seen.status != 200:
                with begun():
                    seen.body = response.read()
            return seen


class HttpxTasks(Tasked):
    """httpx.AsyncClient; a plain one, if it is for an Envoy."""

    def client(self) -> Any:
        if self.given.mesh is None:
            return httpx.AsyncClient(timeout=LIMIT, trust_env=False)
        return meshlib.AsyncClient(mesh=self.given.mesh, timeout=LIMIT)

    async def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        headers = self.given.headers(ask)
        sent = client.stream(ask.method, self.given.url(ask), headers=headers, content=content)
        async with sent as response:
            seen = Seen(response.status_code, response.headers, response.extensions.get("meshlib"))
            if ask.shape != "head" or seen.status != 200:
                with begun():
                    seen.body = await response.aread()
            return seen
