"""Runs one service: `python -m meshlib_bookinfo reviews --version v2 --port 9081`.

It serves as `meshlib serve` does: mutual TLS and plain text at one port, as the mesh's policies say. The
socket listens before the service joins the mesh, and the mesh is told before it stops: nobody is sent to
a port that refuses.
"""

import argparse
import asyncio
import os
import socket
from collections.abc import Callable

from starlette.routing import BaseRoute

import meshlib
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.dataplane.telemetry.wiring import wired
from meshlib_bookinfo import details, productpage, ratings, reviews
from meshlib_bookinfo.workload import Workload
from meshlib_uvicorn import serve

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
    print(f"{options.service} {options.version} at http://{options.host}:{port}", flush=True)
    settings = bootstrap(
        service=options.service,
        service_account=f"bookinfo-{options.service}",
        labels={"app": options.service, "version": options.version},
        address=options.host,
        ports={"http": port},
    )
    with wired(settings, os.environ):
        code = asyncio.run(_serve(options, listener, settings))
    raise SystemExit(code)


async def _serve(options: argparse.Namespace, listener: socket.socket, settings: Bootstrap) -> int:
    workload = Workload(options.service, options.version)
    async with meshlib.Mesh(settings) as mesh:
        app = workload.application(SERVICES[options.service](workload), mesh)
        return await serve(
            app,
            listener,
            mesh,
            lambda: meshlib.Registration(settings, mutual_tls=True),
            graceful=2.0,
            log_level="warning",
            access_log=False,
        )


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
