"""Asking an external authority: one call through the mesh, as any other call of this process goes.

Rules:

- The authority is a service of the mesh: its name is in the name of its cluster, and the call is balanced, secured
  and retried as its routes say. The time of the call is the filter's.
- Whatever goes wrong is no answer; what that means, core decides.
- Over HTTP and gRPC alike; a gRPC call goes over a connection of its own.
- Each thread-driven gate and each event loop has connections of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from meshlib.core import outbound
from meshlib.core.actions import Attempt, Mirror
from meshlib.core.authz.external import (
    MOST_BODY,
    Blocked,
    Check,
    GrpcAuthority,
    HttpAuthority,
    NoAnswer,
    Opinion,
    Passed,
    http_opinion,
    http_request,
)
from meshlib.core.request import Failed, Header, Peer, RequestHead, ResponseHead
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.drive import Answer, FlightFailed, adrive, drive
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.http.codec import Unsendable
from meshlib.dataplane.http.limits import OwnTimeouts, TooSlow
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError
from meshlib.xds.names import ClusterName

_FAILURES = (FlightFailed, TooSlow, Unsendable, ControlError, CallEnded, OSError, TimeoutError, ValueError)
