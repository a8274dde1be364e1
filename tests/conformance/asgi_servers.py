"""The application of the conformance table as ASGI, behind uvicorn and hypercorn in one process.

Prints the ports as one line of JSON: each server with patience, with little, and for few requests.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import uvicorn
from conformance.wsgi_app import piece
from hypercorn.asyncio import serve
from hypercorn.config import Config
from support.ports import free_port

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
PATIENCE, MOST = 0.3, 7
"""As `servers.py` has them."""


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """What `app.js` does, as far as ASGI can."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    exchange = _Exchange(scope, receive, send)
    word, *more = scope["path"].split("/")[1:]
    await getattr(exchange, f"do_{word}")(*more)


class _Exchange:
    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send

    async def start(self, status: int = 200, *headers: tuple[bytes, bytes], trailers: bool = False) -> None:
        began = {"type": "http.response.start", "status": status, "headers": headers, "trailers": trailers}
        await self.send(began)

    async def body(self, body: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def whole(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        await self.start(status, (b"content-length", b"%d" % len(body)), *headers)
        await self.body(body)

    async def drained(self) -> tuple[int, str]:
        length, digest = 0, hashlib.sha256()
        while True:
            message = await self.receive()
            length += len(message.get("body", b""))
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                return length, digest.hexdigest()

    async def do_echo(self) -> None:
        length, digest = await self.drained()
        sent = dict(self.scope["headers"]).get(b"x-sent", b"").decode() or None
        told = {"method": self.scope["method"], "length": length, "sha256": digest, "sent": sent}
        await self.whole(json.dumps(told).encode(), 200, (b"content-type", b"application/json"))

    async def do_bytes(self, size: str) -> None:
        await self.whole(piece(int(size)))

    async def do_stream(self, count: str) -> None:
        await self.start()
        for _ in range(int(count)):
            await self.body(piece(1000), more=True)
            await asyncio.sleep(0.001)
        await self.body(b"")

    async def do_trailers(self) -> None:
        able = "http.response.trailers" in self.scope.get("extensions", {})
        await self.start(200, (b"trailer", b"x-sum"), trailers=able)
        await self.body(piece(100), more=True)
        await self.body(piece(100))
        if able:
            await self.send({"type": "http.response.trailers", "headers": [(b"x-sum", b"abc")]})

    async def do_status(self, status: str) -> None:
        if status in ("204", "304"):
            await self.start(int(status), (b"etag", b'"a"'))
            await self.body(b"")
        else:
            await self.whole(b"as asked", int(status))

    async def do_hints(self) -> None:
        if "http.response.early_hint" in self.scope.get("extensions", {}):
            await self.send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
        await self.whole(b"hinted")

    async def do_close(self) -> None:
        one = self.scope["http_version"].startswith("1")
        await self.whole(b"bye", 200, *([(b"connection", b"close")] if one else []))

    async def do_cookies(self) -> None:
        many = [(b"x-many-%d" % at, b"v" * 20) for at in range(50)]
        await self.whole(b"ok", 200, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), *many)

    async def do_abort(self) -> None:
        await self.start(200, (b"content-length", b"1000"))
        await self._torn()

    async def do_tear(self) -> None:
        await self.start()
        await self._torn()

    async def _torn(self) -> None:
        await self.body(piece(100), more=True)
        await asyncio.sleep(0.005)
        raise RuntimeError("as asked")

    async def do_refuse(self) -> None:
        one = self.scope["http_version"].startswith("1")
        await self.whole(b"too large", 413, *([(b"connection", b"close")] if one else []))

    async def do_linger(self) -> None:
        await asyncio.sleep(0.02)
        length, _ = await self.drained()
        await self.whole(str(length).encode())


def _hypercorn(port: int, settings: Mapping[str, Any]) -> Config:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.errorlog = logging.getLogger("hypercorn")
    for name, value in settings.items():
        setattr(config, name, value)
    return config


async def _main() -> None:
    names = ("uvicorn-http", "uvicorn-brief", "hypercorn-http", "hypercorn-brief", "hypercorn-few")
    ports = {name: free_port() for name in names}

    async def forever() -> None:
        await asyncio.Event().wait()

    def all_servers() -> Iterator[Awaitable[None]]:
        for name, patience in (("uvicorn-http", 60), ("uvicorn-brief", PATIENCE)):
            how = uvicorn.Config(
                application, port=ports[name], log_level="error", timeout_keep_alive=patience
            )  # type: ignore[arg-type]
            yield uvicorn.Server(how)._serve()
        for name, settings in (
            ("hypercorn-http", {}),
            ("hypercorn-brief", {"keep_alive_timeout": PATIENCE}),
            ("hypercorn-few", {"keep_alive_max_requests": MOST}),
        ):
            yield serve(application, _hypercorn(ports[name], settings), shutdown_trigger=forever)  # type: ignore[arg-type]

    print(json.dumps(ports), flush=True)
    await asyncio.gather(*all_servers())


if __name__ == "__main__":
    asyncio.run(_main())
