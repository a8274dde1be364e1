"""`xds_channel("reviews:9080")`: a channel of gRPC's own, whose rules gRPC has from the mesh by itself."""

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import grpc.experimental

import meshlib
from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.asked import Target
from meshlib_grpc.xds.gaps import ignored
from meshlib_grpc.xds.homes import homes


def xds_channel(
    target: str,
    mesh: Mesh | None,
    options: Iterable[tuple[str, Any]] | None,
    compression: grpc.Compression | None,
) -> grpc.Channel:
    """See `meshlib_grpc.xds_channel`."""
    name = Target.parse(target).name

    def make() -> grpc.Channel:
        return grpc.secure_channel(f"xds:///{name}", _credentials(), tuple(options or ()), compression)

    return homes.enter(mesh or meshlib.default(), make, name)


def aio_xds_channel(
    target: str,
    mesh: Mesh | None,
    options: Iterable[tuple[str, Any]] | None,
    compression: grpc.Compression | None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None,
) -> grpc.aio.Channel:
    """See `meshlib_grpc.aio_xds_channel`."""
    name = Target.parse(target).name

    def make() -> grpc.aio.Channel:
        whole = f"xds:///{name}"
        return grpc.aio.secure_channel(whole, _credentials(), tuple(options or ()), compression, interceptors)

    return homes.enter(mesh or meshlib.default(), make, name)


def ignored_by_xds(target: str, mesh: Mesh | None) -> tuple[str, ...]:
    """See `meshlib_grpc.ignored_by_xds`."""
    name = Target.parse(target).name
    return ignored((mesh or meshlib.default()).prepare(name), name)


def _credentials() -> grpc.ChannelCredentials:
    """As the configuration says, endpoint by endpoint: mutual TLS, or plain text."""
    return grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
