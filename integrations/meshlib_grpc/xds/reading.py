"""Which bootstrap gRPC reads in this process, and which it has read.

It reads GRPC_XDS_BOOTSTRAP when a channel first connects, and again when it has no xDS client left (a channel
that was idle for long ends its own); meanwhile later ones take what was read.
"""

import os
from pathlib import Path

from grpc._cython import cygrpc

from meshlib.dataplane.grpc_bootstrap import FILE
from meshlib.xds import pb

VARIABLE, INSTEAD = "GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG"
"""The second counts where the first is not set."""
PREFIX = "meshlib-xds-"
"""Of the folder of a bootstrap that this library made."""


def readers() -> set[str]:
    """The node of each bootstrap that gRPC works by now (CSDS, of this process)."""
    said = cygrpc.dump_xds_configs()
    return {one.node.id for one in pb.ClientStatusResponse.FromString(said).config} if said else set()


def foreign() -> str:
    """Why gRPC would read a bootstrap of the application's own; empty: it would not."""
    path = os.environ.get(VARIABLE)
    if path is not None and not _is_ours(path):
        return f"{VARIABLE} is set to {path}: {_WHAT_TO_DO}"
    return f"{INSTEAD} is set: {_WHAT_TO_DO}" if INSTEAD in os.environ else ""


_WHAT_TO_DO = "gRPC reads one bootstrap a process. Unset it, or use grpc.secure_channel with it"


def _is_ours(path: str) -> bool:
    """Of a parent of this process, which inherits its environment."""
    return Path(path).name == FILE and Path(path).parent.name.startswith(PREFIX)
