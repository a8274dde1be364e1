"""A Django project in the mesh, under WSGI and under ASGI.

    MIDDLEWARE = ["meshlib_django.MeshMiddleware", ...]

The first of all, so that nothing runs for who may not call. Who calls is `request.mesh` (`principal`,
`namespace`, `service_account`, `claims`, `attempt`). The setting MESH_PORT names the workload's port, where
it is not the one that the server says.
"""

from meshlib_django.middleware import MeshMiddleware

__all__ = ["MeshMiddleware"]
