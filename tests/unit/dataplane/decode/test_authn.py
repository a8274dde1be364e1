"""Filters of tokens and of external authorities from the wire."""

from typing import Any

import pytest

from meshlib.core.authn.provider import HeaderPlace
from meshlib.core.authn.requirement import AnyOf, By, Without
from meshlib.core.authz.body import BodyWanted
from meshlib.core.authz.external import GrpcAuthority, HttpAuthority
from meshlib.dataplane.decode.authn import decode_jwt
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.extauthz import decode_ext_authz
from meshlib.xds import pb

KEYS = {"local_jwks": {"inline_string": "{}"}}
SERVICE = {"http_service": {"server_uri": {"uri": "http://a", "cluster": "c", "timeout": "2s"}}}


def jwt(provider: dict[str, Any], requires: Any = None, **more: Any) -> Any:
    rule = {"match": {"prefix": "/"}, "requires": requires or {"provider_name": "p"}}
    return decode_jwt(
        "jwt", pb.from_dict(pb.JwtAuthentication, {"providers": {"p": provider}, "rules": [rule], **more})
    )


def test_tokens_stand_where_they_always_do_unless_something_else_is_said() -> None:
    (plain,) = jwt(KEYS).providers
    assert (plain.headers, plain.params) == ((HeaderPlace(b"authorization", "Bearer "),), ("access_token",))
    (other,) = jwt({**KEYS, "from_cookies": ["session"]}).providers
    assert (other.headers, other.params, other.cookies) == ((), (), ("session",))


def test_who_does_without_a_token_comes_last() -> None:
    made = jwt(KEYS, {"requires_any": {"requirements": [{"allow_missing": {}}, {"provider_name": "p"}]}})
    ((_, needs),) = made.rules
    (provider,) = made.providers
    assert needs == AnyOf((By(provider), Without((provider,))))


@pytest.mark.parametrize(
    ("provider", "requires", "said"),
    [
        ({}, None, "providers[p].local_jwks.inline_string: is not set"),
        (
            {"remote_jwks": {"http_uri": {"uri": "http://x", "cluster": "c"}}},
            None,
            "providers[p].remote_jwks: is not supported",
        ),
        (KEYS, {"provider_name": "q"}, "rules[0].provider_name: 'q' is no provider"),
        ({**KEYS, "require_expiration": True}, None, "providers[p].require_expiration: is not supported"),
    ],
)
def test_a_requirement_is_never_weakened(provider: Any, requires: Any, said: str) -> None:
    with pytest.raises(Refused) as caught:
        jwt(provider, requires)
    assert str(caught.value) == said


def test_an_http_authority() -> None:
    names = {"patterns": [{"exact": "X-User", "ignore_case": True}, {"prefix": "x-p"}]}
    message = {
        "http_service": {
            **SERVICE["http_service"],
            "path_prefix": "/check",
            "authorization_response": {"allowed_upstream_headers": names},
        },
        "allowed_headers": names,
        "failure_mode_allow": True,
        "status_on_error": {"code": "ServiceUnavailable"},
    }
    made = decode_ext_authz("ext", pb.from_dict(pb.ExtAuthz, message))
    assert (made.fail_open, made.status_on_error, made.enabled) == (True, 503, None)
    authority = made.authority
    assert isinstance(authority, HttpAuthority)
    assert (authority.cluster, authority.timeout, authority.path_prefix) == ("c", 2.0, "/check")
    assert [authority.to_request(name) for name in (b"x-user", b"x-pq", b"x")] == [True, True, False]
    assert authority.to_client is None
    assert made.asks is not None
    assert made.asks(b"x-user")


def test_a_grpc_authority() -> None:
    service = {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}, "timeout": "1s"}}
    made = decode_ext_authz("ext", pb.from_dict(pb.ExtAuthz, service))
    assert made.authority == GrpcAuthority("c", 1.0)
    assert made.status_on_error == 403


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_request_bytes": 5}, BodyWanted(5)),
        (
            {"max_request_bytes": 2**32 - 1, "allow_partial_message": True, "pack_as_bytes": True},
            BodyWanted(2**32 - 1, partial=True, raw=True),
        ),
    ],
)
def test_how_much_of_a_body_is_shown(settings: Any, wanted: BodyWanted) -> None:
    message = pb.from_dict(pb.ExtAuthz, {**SERVICE, "with_request_body": settings})
    assert decode_ext_authz("ext", message).body == wanted


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "services: is not set"),
        ({"http_service": {"server_uri": {"uri": "x"}}}, "http_service.server_uri.cluster: is empty"),
        ({**SERVICE, "with_request_body": {}}, "with_request_body.max_request_bytes: is 0"),
        ({**SERVICE, "include_peer_certificate": True}, "include_peer_certificate: is not supported"),
        ({"grpc_service": {"google_grpc": {}}}, "grpc_service.envoy_grpc.cluster_name: is not set"),
    ],
)
def test_what_can_not_be_asked_is_refused(message: Any, said: str) -> None:
    with pytest.raises(Refused) as caught:
        decode_ext_authz("ext", pb.from_dict(pb.ExtAuthz, message))
    assert str(caught.value) == said
