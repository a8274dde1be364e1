"""Envoy's transport socket that sends a PROXY header: which version, and the socket beneath."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

_READ = frozenset(("config", "transport_socket"))
_TYPE = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
_VERSIONS = {0: 1, 1: 2}
"""By envoy.config.core.v3.ProxyProtocolConfig.Version."""


def decode_proxy_protocol(cluster: Any) -> int:
    """The version of the PROXY header of an envoy.config.cluster.v3.Cluster's connections; 0: they have none.
    Refused: it depends on the endpoint.
    """
    found = {_version(socket, path) for socket, path in _sockets(cluster)}
    if len(found) > 1:
        raise Refused("transport_socket_matches", "only some of them send a PROXY header")
    return found.pop() if found else 0


def beneath(socket: Any, path: str) -> Any:
    """The envoy.config.core.v3.TransportSocket under the header; itself, if it sends none."""
    made = _unpacked(socket, path)
    if made is None:
        return socket
    if not made.HasField("transport_socket"):
        raise Refused(f"{path}.typed_config.transport_socket", "is not set")
    return made.transport_socket


def _sockets(cluster: Any) -> Iterator[tuple[Any, str]]:
    for number, match in enumerate(cluster.transport_socket_matches):
        yield match.transport_socket, f"transport_socket_matches[{number}].transport_socket"
    if cluster.HasField("transport_socket"):
        yield cluster.transport_socket, "transport_socket"


def _version(socket: Any, path: str) -> int:
    made = _unpacked(socket, path)
    if made is None:
        return 0
    at = f"{path}.typed_config"
    for field, _ in made.ListFields():
        if field.name not in _READ:
            raise Refused(f"{at}.{field.name}", "is not supported")
    for field, _ in made.config.ListFields():
        if field.name != "version":
            raise Refused(f"{at}.config.{field.name}", "is not supported")
    if made.config.version not in _VERSIONS:
        raise Refused(f"{at}.config.version", f"{made.config.version} is unknown")
    return _VERSIONS[made.config.version]


def _unpacked(socket: Any, path: str) -> Any:
    if not socket.typed_config.type_url.endswith(f"/{_TYPE}"):
        return None
    try:
        return pb.unpack(socket.typed_config)
    except DecodeError as error:
        raise Refused(f"{path}.typed_config", f"can't be decoded: {error}") from None
