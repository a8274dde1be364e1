"""The mesh's inbound side for any WSGI application.

    application = MeshMiddleware(application)

It lets in whom the mesh's policies let in, tells the application who that is (`environ["meshlib.caller"]`),
and hands on what has to travel with the calls that are made for the request.
"""

from meshlib_wsgi.middleware import MeshMiddleware
from meshlib_wsgi.peers import CALLER, PEER, caller_of, peer_of

__all__ = ["CALLER", "PEER", "MeshMiddleware", "caller_of", "peer_of"]
