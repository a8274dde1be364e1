"""uvicorn in the mesh: its protocols and its life cycle, behind a port that the mesh secures.

    Server(uvicorn.Config(app), gate).run(sockets=[listening])

Every connection is looked at by `meshlib.dataplane.accept` first, so plain text and mutual TLS share the
port as PeerAuthentication says, and every scope says who the peer is.
"""

from meshlib_uvicorn.server import Server
from meshlib_uvicorn.serving import serve

__all__ = ["Server", "serve"]
