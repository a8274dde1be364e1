"""What the middleware leaves in a scope is of one request, whatever the server shares between them."""

import pytest

from meshlib.core.caller import Caller
from meshlib.core.inbound import Admitted
from meshlib.core.request import Peer, RequestHead
from meshlib_asgi import MeshMiddleware
from meshlib_asgi.middleware import head_of, known, tell

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


def got(path: str, raw: str, root: str = "") -> tuple[bool, object, object]:
    """Whether the application is asked, and the path that it is given, of a request that became `path`."""
    came = RequestHead("GET", "http", "reviews", raw, [])
    admitted = RequestHead("GET", "http", "reviews", path, [])
    scope: dict[str, object] = {"type": "http", "path": raw, "raw_path": raw.encode(), "root_path": root}
    return tell(scope, Admitted(CALLER, admitted), came), scope["path"], scope["raw_path"]


@pytest.mark.parametrize(
    ("path", "raw", "root", "told"),
    [
        ("/app/a%20b", "/app/a%20b", "/app", (True, "/app/a b", b"/app/a%20b")),
        ("/app/b", "/app/a/../b", "/app", (True, "/app/b", b"/app/b")),
        ("/admin", "/app/../admin", "/app", (False, "/admin", b"/admin")),
        ("/application", "/app/../application", "/app", (False, "/application", b"/application")),
        ("/b", "/a/../b", "/stripped", (True, "/b", b"/b")),
        ("/a%2Fb", "/a%2Fb", "", (True, "/a%2Fb", b"/a%2Fb")),
        ("/%FF", "/%FF", "", (True, "/\ufffd", b"/%FF")),
    ],
)
def test_the_path_is_the_one_that_was_judged(
    path: str, raw: str, root: str, told: tuple[bool, str, bytes]
) -> None:
    assert got(path, raw, root) == told


def test_without_a_raw_path_the_decoded_one_is_encoded() -> None:
    scope = {"type": "http", "path": "/100%25/\u00e9 b", "headers": [], "query_string": b"q"}
    assert head_of(scope).path == "/100%2525/%C3%A9%20b?q"


async def test_what_the_mesh_can_not_judge_does_not_pass() -> None:
    async def app(*_: object) -> None:
        passed.append(True)

    async def nothing(*_: object) -> dict[str, object]:
        return {}

    passed: list[bool] = []
    guarded = MeshMiddleware(app)
    await guarded({"type": "lifespan"}, nothing, nothing)
    assert passed == [True]
    with pytest.raises(ValueError, match="scope type 'webtransport': the mesh judges http and websocket"):
        await guarded({"type": "webtransport", "headers": []}, nothing, nothing)
    assert passed == [True]
