"""aiohttp."""

from typing import Any

import aiohttp
from soak.asking import LIMIT, Ask, Seen, Tasked, begun

import meshlib_aiohttp


class Aiohttp(Tasked):
    """aiohttp.ClientSession."""

    def client(self) -> Any:
        limit = aiohttp.ClientTimeout(total=LIMIT)
        return meshlib_aiohttp.ClientSession(mesh=self.given.mesh, timeout=limit)

    async def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        headers = self.given.headers(ask)
        response: aiohttp.ClientResponse
        async with client.request(ask.method, self.given.url(ask), headers=headers, data=content) as response:
            seen = Seen(response.status, response.headers, meshlib_aiohttp.facts(response))
            if ask.shape != "head" or seen.status != 200:
                with begun():
                    seen.body = await response.read()
            return seen
