"""requests."""

from typing import Any

import requests
from soak.asking import LIMIT, Ask, Seen, Threaded, begun

import meshlib_requests


class Requests(Threaded):
    """requests.Session."""

    def client(self) -> Any:
        return meshlib_requests.Session(mesh=self.given.mesh)

    def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        headers = self.given.headers(ask)
        made: requests.Response
        with client.request(
            ask.method, self.given.url(ask), headers=headers, data=content, timeout=LIMIT, stream=True
        ) as made:
            seen = Seen(made.status_code, made.headers, meshlib_requests.facts(made))
            if ask.shape != "head" or seen.status != 200:
                with begun():
                    seen.body = made.content
            return seen
