"""Whether HTTP/2 is spoken to a cluster, and how, from what Envoy is sent."""

from typing import Any

import pytest

from meshlib.core.http2 import MOST_STREAMS, Http2
from meshlib.dataplane.decode.clusters import HTTP_OPTIONS, decode_cluster
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb


def cluster(options: dict[str, Any] | None, **more: Any) -> Any:
    made = {"name": "c", **more}
    if options is not None:
        packed = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", **options}
        made["typed_extension_protocol_options"] = {HTTP_OPTIONS: packed}
    return pb.from_dict(pb.Cluster, made)


def http2(**options: Any) -> dict[str, Any]:
    return {"explicit_http_config": {"http2_protocol_options": options}}


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (None, None),
        ({"explicit_http_config": {"http_protocol_options": {}}}, None),
        ({"use_downstream_protocol_config": {"http2_protocol_options": {}}}, None),
        ({"auto_config": {}}, None),
        (http2(), Http2()),
        (http2(max_concurrent_streams=7), Http2(7)),
        (http2(max_concurrent_streams=MOST_STREAMS), Http2(MOST_STREAMS)),
        (http2(connection_keepalive={"interval": "30s", "timeout": "0.5s"}), Http2(MOST_STREAMS, 30.0, 0.5)),
        (http2(connection_keepalive={"timeout": "5s"}), Http2(MOST_STREAMS, 0.0, 5.0)),
    ],
)
def test_what_is_spoken(options: dict[str, Any] | None, how: Http2 | None) -> None:
    assert decode_cluster(cluster(options)).upstream.http2 == how


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (http2(max_concurrent_streams=0), "http2_protocol_options.max_concurrent_streams"),
        (http2(max_concurrent_streams=2**31), "http2_protocol_options.max_concurrent_streams"),
        (http2(connection_keepalive={"interval": "1s"}), "connection_keepalive.timeout"),
        (http2(connection_keepalive={"interval": "0s", "timeout": "1s"}), "connection_keepalive.interval"),
        (http2(connection_keepalive={"interval": "-1s", "timeout": "1s"}), "connection_keepalive.interval"),
        (
            http2(connection_keepalive={"interval": "1s", "timeout": "0.0009s"}),
            "connection_keepalive.timeout",
        ),
        ({"explicit_http_config": {"http3_protocol_options": {}}}, "http3_protocol_options"),
    ],
)
def test_what_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as raised:
        decode_cluster(cluster(options))
    assert field in raised.value.path
    assert raised.value.path.startswith(f"typed_extension_protocol_options[{HTTP_OPTIONS}]")


@pytest.mark.parametrize(("options", "offered"), [(http2(), ("istio-h2", "istio", "h2")), (None, ("istio",))])
def test_what_is_offered_in_tls(options: dict[str, Any] | None, offered: tuple[str, ...]) -> None:
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["istio-h2", "istio", "h2"]},
    }
    made = decode_cluster(cluster(options, transport_socket={"name": "tls", "typed_config": context}))
    assert made.tls is not None
    assert made.tls.alpn == offered
