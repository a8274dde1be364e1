"""gunicorn in the mesh: worker classes, which are all that has to be named.

    gunicorn -k meshlib_gunicorn.ThreadWorker -w 2 --threads 8 -b 0.0.0.0:9080 reviews.app:application

`SyncMeshWorker` and `ThreadWorker` are gunicorn's own sync and gthread workers, `UvicornWorker` serves ASGI
applications. The port takes mutual TLS and plain text as PeerAuthentication says, requests are admitted by
the mesh's policies, and the arbiter registers the server once and drains it before it stops.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib_gunicorn.asgi import UvicornWorker
    from meshlib_gunicorn.wsgi import SyncMeshWorker, ThreadWorker

__all__ = ["SyncMeshWorker", "ThreadWorker", "UvicornWorker"]

_LAZY = {
    "SyncMeshWorker": "meshlib_gunicorn.wsgi",
    "ThreadWorker": "meshlib_gunicorn.wsgi",
    "UvicornWorker": "meshlib_gunicorn.asgi",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'meshlib_gunicorn' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
