"""What the middleware leaves in a scope is of one request, whatever the server shares between them."""

from meshlib.core.caller import Caller
from meshlib.core.inbound import Admitted
from meshlib.core.request import Peer, RequestHead
from meshlib_asgi.middleware import known, tell

HEAD = RequestHead("GET", "http", "reviews", "/", [])
CALLER = Caller(Peer(("127.0.0.1", 1), ("127.0.0.1", 2), "spiffe://cluster.local/ns/a/sa/b", "", True))


def test_a_state_that_a_server_shares_lets_nobody_in() -> None:
    shared = {"pool": "of the lifespan"}
    first = {"type": "http", "state": shared}
    assert known(first) is None
    tell(first, Admitted(CALLER, HEAD), HEAD)
    assert known(first) is CALLER
    assert first["state"] == {"pool": "of the lifespan", "mesh": CALLER}
    assert shared == {"pool": "of the lifespan"}
    assert known({"type": "http", "state": first["state"]}) is None


def test_a_scope_without_a_state_gets_one() -> None:
    scope: dict[str, object] = {"type": "http"}
    tell(scope, Admitted(CALLER, HEAD), HEAD)
    assert scope["state"] == {"mesh": CALLER}
