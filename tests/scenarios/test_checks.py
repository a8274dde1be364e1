"""An external authority is really asked, over HTTP and gRPC, from threads and from tasks."""

import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from meshlib.core.actions import Reply
from meshlib.core.authz.external import ExtAuthz, GrpcAuthority, HttpAuthority
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.inbound import Admitted, Inbound
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.bootstrap_settings import SETTINGS
from meshlib.dataplane.gate import Gate
from meshlib.xds import pb
from meshlib.xds.names import inbound_listener
