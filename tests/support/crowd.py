"""Many clients in a process of their own: argv is address, how many, target.

Each has a connection of its own. Whenever all of them received new routes, a line of output is the
JSON list of the moments at which they did, in seconds of the machine's monotonic clock.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict

import grpc.aio
from support.ads_peer import Following, encoded, method

from meshlib.xds.kinds import Kind


class Crowd:
    """The clients."""

    def __init__(self, address: str, size: int, target: str) -> None:
        self._address = address
        self._size = size
        self._target = target
        self._moments: dict[str, list[float]] = defaultdict(list)

    async def follow(self, number: int) -> None:
        """One client, for ever."""
        path, reply = method(delta=True)
        following = Following(f"crowd-{number}", self._target)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call = channel.stream_stream(
                path, request_serializer=encoded, response_deserializer=reply.FromString
            )()
            while True:
                for message in following.to_send():
                    await call.write(message)
                response = await call.read()
                now = time.monotonic()
                update = following.take(response)
                if update.kind is Kind.ROUTES:
                    self._received(update.version, now)

    def _received(self, version: str, now: float) -> None:
        self._moments[version].append(now)
        if len(self._moments[version]) == self._size:
            print(json.dumps(self._moments.pop(version)), flush=True)

    async def run(self) -> None:
        """All of them."""
        await asyncio.gather(*(self.follow(number) for number in range(self._size)))


if __name__ == "__main__":
    asyncio.run(Crowd(sys.argv[1], int(sys.argv[2]), sys.argv[3]).run())
