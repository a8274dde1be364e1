"""gRPC, in tasks."""

from typing import Any

import grpc
import grpc.aio
from soak.asking import GREETER, LIMIT, Ask, Failed, Seen, Tasked
from soak.reasons import Begun, of_error, of_words

import meshlib
import meshlib_grpc


class Grpc(Tasked):
    """grpc.aio."""

    services = (GREETER,)

    def client(self) -> Any:
        if self.given.mesh is not None:
            return meshlib_grpc.aio_channel(f"{GREETER}:{self.given.ports['grpc']}", self.given.mesh)
        named = ("grpc.default_authority", f"{GREETER}:{self.given.ports['grpc']}")
        options = (named, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.given.ports['grpc']}", options)

    async def send(self, client: Any, ask: Ask, content: Any) -> Seen:
        size = {"post": 30_000, "put": 60_000}.get(ask.shape, 100)
        if ask.shape in ("big", "head"):
            got = 0
            count = client.unary_stream("/soak.Greeter/Count")
            try:
                async for _ in count(b"", timeout=LIMIT, metadata=(("x-policy", ask.policy),)):
                    got += 1
                    if ask.shape == "head":
                        break
            except grpc.aio.AioRpcError as error:
                if got:
                    raise Begun(repr(error)) from error
                raise
        else:
            method = client.unary_unary(f"/soak.Greeter/{ask.policy.capitalize()}")
            assert len(await method(b"x" * size, timeout=LIMIT)) == size
        return Seen(200, {})

    def lost(self, began: int, ask: Ask, error: Exception) -> None:
        found = of_error(error)
        if isinstance(error, grpc.aio.AioRpcError) and not isinstance(error, meshlib.MeshError):
            found = of_words(error.details() or "")
        self.counts.failed(began, ask.service, ask.policy, Failed(found, f"{ask} {error!r}"))
