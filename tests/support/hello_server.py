"""A server that does next to nothing, in a process of its own: what a client costs is the client's."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

SOURCE = """
import asyncio, sys
class P(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.seen = transport, b""
    def data_received(self, data):
        self.seen += data
        while b"\\r\\n\\r\\n" in self.seen:
            _, _, self.seen = self.seen.partition(b"\\r\\n\\r\\n")
            self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
async def main():
    server = await asyncio.get_running_loop().create_server(P, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@contextlib.contextmanager
def hello_server() -> Iterator[int]:
    """Its port."""
    command = [sys.executable, "-c", SOURCE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.communicate("")
