"""What a caller says of itself, and what is left of it."""

import pytest

from meshlib.core.outsiders import XFCC, certified, client_address, told
from meshlib.core.request import Header, Peer, RequestHead

STRANGER = Peer(("203.0.113.9", 40000), ("10.0.0.2", 9080))
WEB = "spiffe://cluster.local/ns/default/sa/web"
OWN = "spiffe://cluster.local/ns/default/sa/reviews"
MESH = Peer(("10.0.0.1", 40000), ("10.0.0.2", 9080), WEB, "", True, "ab12", dns=("web.default.svc",))
FORGED = b"By=spiffe://x;URI=spiffe://cluster.local/ns/default/sa/admin"


def left(peer: Peer, *headers: Header) -> list[Header]:
    return told(RequestHead("GET", "http", "h", "/", list(headers)), peer, OWN).headers


@pytest.mark.parametrize(
    "name",
    [
        *(b"x-forwarded-client-cert", b"X-Forwarded-Client-Cert", b"x_forwarded_client_cert"),
        *(
            b"x-envoy-peer-metadata",
            b"X-Envoy-Peer-Metadata-Id",
            b"x-envoy-attempt-count",
            b"x-envoy-internal",
        ),
        *(b"x-envoy-original-path", b"x-envoy-retry-on", b"x_envoy_peer_metadata", b"x-istio-attributes"),
    ],
)
def test_of_a_stranger_it_is_removed(name: bytes) -> None:
    assert left(STRANGER, (name, FORGED), (b"accept", b"*/*")) == [(b"accept", b"*/*")]


def test_how_long_the_caller_waits_is_believed_of_everybody() -> None:
    waits = (b"x-envoy-expected-rq-timeout-ms", b"100")
    assert left(STRANGER, waits) == [waits]


def test_a_mesh_peer_is_believed_and_named() -> None:
    attempt = (b"x-envoy-attempt-count", b"2")
    own = b'By=%b;Hash=ab12;Subject="";URI=%b;DNS=web.default.svc' % (OWN.encode(), WEB.encode())
    assert left(MESH, attempt) == [attempt, (XFCC, own)]
    assert certified(MESH, OWN) == own


@pytest.mark.parametrize("name", [b"x-envoy-peer-metadata", b"X-Envoy-Peer-Metadata-Id"])
def test_what_is_for_telemetry_reaches_no_application(name: bytes) -> None:
    assert [header[0] for header in left(MESH, (name, b"x"), (b"accept", b"*/*"))] == [b"accept", XFCC]


def test_what_a_mesh_peer_forwards_stays_before_its_own_name() -> None:
    found = left(MESH, (XFCC, FORGED), (b"x_forwarded_client_cert", b"URI=spiffe://other"))
    assert found == [(XFCC, FORGED + b"," + certified(MESH, OWN))]


@pytest.mark.parametrize(
    ("said", "address"),
    [([], ""), ([b"10.1.2.3"], "10.1.2.3"), ([b"1.1.1.1, 2.2.2.2"], "2.2.2.2"), ([b"1.1.1.1", b"x"], "x")],
)
def test_the_clients_address_is_the_last_that_a_proxy_said(said: list[bytes], address: str) -> None:
    headers = [(b"x-forwarded-for", value) for value in said]
    assert client_address(RequestHead("GET", "http", "h", "/", headers)) == address
