"""`proxyProtocol` of a DestinationRule: every transport of the cluster sends a PROXY header first (Istio)."""

from typing import Any

from meshlib.control.istio.destinationrule import ProxyProtocol
from meshlib.xds import pb

RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
SOCKET = "envoy.transport_sockets.upstream_proxy_protocol"


def put_proxy_protocol(cluster: Any, said: ProxyProtocol | None) -> None:
    """Puts it on an envoy.config.cluster.v3.Cluster that is finished otherwise."""
    if said is None:
        return
    sockets = [match.transport_socket for match in cluster.transport_socket_matches]
    if cluster.HasField("transport_socket") or not sockets:
        sockets.append(cluster.transport_socket)
    for socket in sockets:
        made = pb.ProxyProtocolUpstreamTransport()
        made.config.version = said.version.value
        if socket.name:
            made.transport_socket.CopyFrom(socket)
        else:
            made.transport_socket.name = "envoy.transport_sockets.raw_buffer"
            made.transport_socket.typed_config.CopyFrom(pb.pack(pb.message(RAW_BUFFER)()))
        socket.name = SOCKET
        socket.typed_config.CopyFrom(pb.pack(made))
