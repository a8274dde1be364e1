"""Runs one service: `python -m meshlib_bookinfo reviews --version v2 --port 9081`.

The socket listens before the service joins the mesh, and the mesh is told before it stops: nobody is
sent to a port that refuses.
"""

import argparse
import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.routing import BaseRoute

from meshlib_bookinfo import details, productpage, ratings, reviews
from meshlib_bookinfo.workload import Workload

SERVICES: dict[str, Callable[[Workload], list[BaseRoute]]] = {
    "productpage": productpage.routes,
    "details": details.routes,
    "ratings": ratings.routes,
    "reviews": reviews.routes,
}


def main() -> None:
    """Serves until it is told to stop."""
    options = _arguments()
    listener = (
        socket.socket(fileno=options.fd) if options.fd is not None else _bound(options.host, options.port)
    )
    listener.listen(2048)
    port = listener.getsockname()[1]
    workload = Workload(options.service, options.version)
    app = workload.application(SERVICES[options.service](workload), port=port, address=options.host)
    print(f"{options.service} {options.version} at http://{options.host}:{port}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    _Server(config, workload).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says that it leaves, and goes on serving while others hear of it, before it stops."""

    def __init__(self, config: uvicorn.Config, workload: Workload) -> None:
        super().__init__(config)
        self._workload = workload

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains, then stops."""
        await asyncio.to_thread(self._workload.registration.drain)
        await super().shutdown(sockets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m meshlib_bookinfo", description="One service of Bookinfo."
    )
    parser.add_argument("service", choices=sorted(SERVICES))
    parser.add_argument(
        "--version", default="v1", help="v1, or for reviews v2 (black stars) or v3 (red stars)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at and to be known by")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--fd", type=int, help="a bound socket to listen at, instead of --port")
    return parser.parse_args()


def _bound(host: str, port: int) -> socket.socket:
    """A bound TCP socket; ends the process with a sentence when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise SystemExit(
            f"can't listen at {host}:{port}: {error.strerror}; choose another with --port"
        ) from None
    return listener


if __name__ == "__main__":
    main()
