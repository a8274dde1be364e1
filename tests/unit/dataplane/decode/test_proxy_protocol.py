"""The PROXY header of a cluster: its version, the transport beneath, and what is refused."""

from typing import Any

import pytest

from meshlib.core.mtls import ClientTls, Trust
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

PREFIX = "type.googleapis.com/envoy.extensions.transport_sockets."
RAW = {"name": "raw", "typed_config": {"@type": f"{PREFIX}raw_buffer.v3.RawBuffer"}}
TLS = {
    "name": "tls",
    "typed_config": {
        "@type": f"{PREFIX}tls.v3.UpstreamTlsContext",
        "sni": "x",
        "common_tls_context": {"validation_context": {"system_root_certs": {}}},
    },
}


def headed(beneath: Any, config: Any = None, **more: Any) -> dict[str, Any]:
    kind = f"{PREFIX}proxy_protocol.v3.ProxyProtocolUpstreamTransport"
    said = {"@type": kind, "config": config or {}, **more}
    if beneath is not None:
        said["transport_socket"] = beneath
    return {"name": "headed", "typed_config": said}


def cluster(**fields: Any) -> Any:
    return pb.from_dict(pb.Cluster, {"name": "c", "type": "EDS", **fields})


def matches(*sockets: Any) -> list[dict[str, Any]]:
    return [{"name": str(number), "transport_socket": one} for number, one in enumerate(sockets)]


@pytest.mark.parametrize(("config", "version"), [({}, 1), ({"version": "V1"}, 1), ({"version": "V2"}, 2)])
def test_the_version(config: dict[str, Any], version: int) -> None:
    made = decode_cluster(cluster(transport_socket=headed(RAW, config)))
    assert (made.upstream.proxy_protocol, made.tls) == (version, None)
    assert decode_cluster(cluster()).upstream.proxy_protocol == 0


def test_the_transport_beneath() -> None:
    made = decode_cluster(cluster(transport_socket=headed(TLS)))
    assert made.tls == ClientTls(Trust.SYSTEM, mesh_identity=False, sni="x")
    made = decode_cluster(cluster(transport_socket_matches=matches(headed(TLS), headed(RAW))))
    assert [each.tls is None for each in made.transports] == [False, True]
    assert made.upstream.proxy_protocol == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"transport_socket": headed(None)}, r"transport_socket\.typed_config\.transport_socket"),
        ({"transport_socket": headed(RAW, {"version": 7})}, r"config\.version"),
        ({"transport_socket": headed(RAW, {"pass_through_tlvs": {}})}, "pass_through_tlvs"),
        ({"transport_socket": headed(RAW, {"added_tlvs": [{"type": 1, "value": ""}]})}, "added_tlvs"),
        ({"transport_socket": headed(RAW, tlv_as_pool_key=True)}, "tlv_as_pool_key"),
        ({"transport_socket": headed(headed(RAW))}, "is not supported"),
        ({"transport_socket_matches": matches(headed(TLS), RAW)}, "only some of them"),
        ({"transport_socket_matches": matches(RAW), "transport_socket": headed(RAW)}, "only some of them"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused, match=path):
        decode_cluster(cluster(**fields))


def test_broken_bytes_are_refused() -> None:
    message = cluster(transport_socket=headed(RAW))
    message.transport_socket.typed_config.value = b"\xff"
    with pytest.raises(Refused, match="can't be decoded"):
        decode_cluster(message)
