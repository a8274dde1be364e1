"""What it costs to let a request in: twenty rules, of which the last one takes it."""

from typing import Any

from meshlib.core.inbound import Admitted, Inbound, arrive
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.decode.authz import decode_rbac
from meshlib.xds import pb

RULES = 20
PEER = Peer(
    ("10.0.0.1", 40000), ("10.0.0.2", 9080), "spiffe://cluster.local/ns/default/sa/web", "", True, "ab" * 32
)
HEADERS = [(b"user-agent", b"x"), (b"accept", b"*/*"), (b"x-request-id", b"1"), (b"end-user", b"jason")]


def _policy(number: int) -> dict[str, Any]:
    named = {
        "authenticated": {"principal_name": {"exact": f"spiffe://cluster.local/ns/default/sa/web{number}"}}
    }
    last = {"authenticated": {"principal_name": {"exact": "spiffe://cluster.local/ns/default/sa/web"}}}
    method = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
    path = {"url_path": {"path": {"prefix": "/reviews"}}}
    return {
        "permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": [one]}} for one in (method, path)]}}],
        "principals": [{"and_ids": {"ids": [{"or_ids": {"ids": [named if number < RULES - 1 else last]}}]}}],
    }


def test_admission_with_twenty_rules(benchmark: Any) -> None:
    policies = {f"ns[default]-policy[p]-rule[{number:02}]": _policy(number) for number in range(RULES)}
    rbac = decode_rbac("rbac", pb.from_dict(pb.RBAC, {"rules": {"action": "ALLOW", "policies": policies}}))
    inbound = Inbound("inbound", ServerTls(), (rbac,))

    def admit() -> object:
        head = RequestHead("GET", "http", "reviews:9080", "/reviews/1", HEADERS)
        try:
            next(arrive(inbound, head, PEER, "spiffe://cluster.local/ns/default/sa/reviews", 0.0))
        except StopIteration as ended:
            return ended.value
        raise AssertionError("nobody is asked here")

    assert isinstance(benchmark(admit), Admitted)
