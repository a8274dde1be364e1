"""Serves `support.telling` as `meshlib serve` does, with the HTTP parser that is asked for: h11 or httptools.

python -m support.serving_parser h11 9080
"""

import asyncio
import socket
import sys

from support.telling import app

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.register import Registration
from meshlib_uvicorn import serve


async def main(parser: str, port: int) -> int:
    """Until SIGTERM."""
    listening = socket.create_server(("127.0.0.1", port))
    settings = bootstrap(service="reviews", address="127.0.0.1", ports={"http": port})

    def ready() -> None:
        print(f"serving at 127.0.0.1:{port}", flush=True)

    async with Mesh(settings) as mesh:
        return await serve(
            app,
            listening,
            mesh,
            lambda: Registration(settings, mutual_tls=True),
            ready=ready,
            http=parser,
            log_level="warning",
        )


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))
