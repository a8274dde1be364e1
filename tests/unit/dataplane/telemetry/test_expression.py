"""CEL about a request that has ended. What a real Envoy answers: tests/envoy/test_access_log_config.py."""

from dataclasses import replace

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.dataplane.telemetry.expression import Unknown, condition, value
from meshlib.xds import cel

HEAD = RequestHead("POST", "http", "reviews:9080", "/a/b?c=d", [(b"X-A", b"1"), (b"user-agent", b"ua")])
ENDED = Ended(
    HEAD,
    418,
    0.0,
    0.25,
    details="direct_response",
    response={b"server": b"x"},
    received=4,
    sent=3,
    route="direct",
    cluster="outbound|9080||reviews",
    upstream="10.0.0.1:9080",
    remote="[::1]:4711",
    local="127.0.0.1:80",
    sni="name",
    principal="spiffe://x/ns/a/sa/b",
)
NOBODY = replace(ENDED, status=0, upstream="", remote="", sni="", principal="", cluster="", details="")

TRUE = (
    "response.code >= 400",
    "response.code / 100 == 4",
    "response.code % 100 == 18",
    "-7 / 2 == -3 && -7 % 2 == -1 && 7 / -2 == -3",
    "7.0 / 2 == 3.5",
    "response.code - 18 + 2 * 3 == 406",
    "response.code in [404, 418]",
    "request.method in ['POST'] && !('x-none' in request.headers) && 'X-a' in request.headers",
    "request.headers['x-a'] == '1' && request.headers['X-A'] < '2'",
    "response.headers['server'] == 'x' && response.headers.server == 'x'",
    "has(request.headers.referer) == false && has(response.code)",
    "request.path == '/a/b?c=d' && request.url_path.endsWith('/b') && request.query == 'c=d'",
    "request.host.startsWith('reviews') && request.scheme == 'http' && request.protocol.contains('1.1')",
    "request.useragent == 'ua' && request.size == 4 && response.size == 3",
    "request.duration > duration('200ms') && request.duration < duration('1s')",
    "request.path.matches('a/.') && !request.path.matches('^a')",
    "size(request.path) == 8 && size([1, 2]) == 2 && size(request.headers) == 2",
    "response.code_details == 'direct_response' && xds.route_name == 'direct'",
    "connection.mtls && connection.requested_server_name == 'name'",
    "connection.uri_san_peer_certificate.contains('/ns/a/')",
    "source.address == '[::1]:4711' && source.port == 4711 && destination.port == 80",
    "upstream.port == 9080 && upstream.address == '10.0.0.1:9080' && destination.address == '127.0.0.1:80'",
    "xds.cluster_name.startsWith('outbound|') ? true : false",
    "request.path + '!' == '/a/b?c=d!'",
    "response.code > 500 ? false : response.code > 400",
    # Unknown, but the other side decides.
    "request.headers['x-none'] == 'x' || response.code == 418",
    "response.code == 418 || request.headers['x-none'] == 'x'",
    "!(request.headers['x-none'] == 'x' && response.code == 0)",
    "!has(request.headers['x-none'])",
)
FALSE = (
    "response.code >= 500",
    "request.headers['x-none'] == 'x'",
    "request.headers['x-none'] != 'x'",
    "!(request.headers['x-none'] == 'x')",
    "request.headers['x-none'] == 'x' || response.code == 0",
    "response.code == 418 && request.headers['x-none'] == 'x'",
    "response.code / 0 == 0",
    "response.code % 0 == 0",
    "request.referer == ''",
    "request.id.contains('')",
)


@pytest.mark.parametrize("text", TRUE)
def test_true(text: str) -> None:
    assert condition(text)(ENDED)


@pytest.mark.parametrize("text", FALSE)
def test_false_or_unknown(text: str) -> None:
    assert not condition(text)(ENDED)


@pytest.mark.parametrize("name", sorted(cel.ATTRIBUTES))
def test_every_attribute_is_there_or_unknown(name: str) -> None:
    asked = value(cel.parse(name))
    kinds = {cel.Kind.TEXT: str, cel.Kind.NUMBER: int, cel.Kind.BOOL: bool}
    if name not in ("request.id", "request.referer"):
        assert isinstance(asked(ENDED), kinds.get(cel.ATTRIBUTES[name], object))
    if name.startswith(("upstream.", "source.", "response.code")):
        with pytest.raises(Unknown):
            asked(NOBODY)
    assert not condition("connection.mtls")(NOBODY)
