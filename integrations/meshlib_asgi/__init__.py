"""The mesh's inbound side for any ASGI application.

    app = MeshMiddleware(app)

It lets in whom the mesh's policies let in, tells the application who that is (`scope["state"]["mesh"]`, which
Starlette and FastAPI show as `request.state.mesh`), and hands on what has to travel with the calls that are
made for the request.
"""

from meshlib_asgi.middleware import MeshMiddleware
from meshlib_asgi.peers import WithPeer, peer_of

__all__ = ["MeshMiddleware", "WithPeer", "peer_of"]
