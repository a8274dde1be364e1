"""The gate of a port: nobody before the policy is known, STRICT, and the drivers for threads and tasks."""

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from meshlib.bootstrap import bootstrap
from meshlib.core.actions import Reply
from meshlib.core.authz.body import BodyWanted, Found, Shown, Unread
from meshlib.core.authz.external import Check, ExtAuthz, HttpAuthority
from meshlib.core.authz.opinion import Opinion, Passed
from meshlib.core.inbound import Admitted, Inbound
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.rule import Origin
from meshlib.dataplane.gate import Gate
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.views import Views
from meshlib.errors import ControlUnavailable
from meshlib.xds.names import inbound_listener

PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
NOBODY = Peer(("10.0.0.1", 4000), ("10.0.0.2", 9080))
PEER = Peer(("10.0.0.1", 4000), ("10.0.0.2", 9080), PAGE, tls=True)
STRICT = Inbound(
    inbound_listener(9080),
    ServerTls(InboundMode.STRICT),
    origin=Origin("PeerAuthentication a/b", "m.yaml:3"),
    version="4",
)
OPEN = Inbound(inbound_listener(9080), ServerTls(InboundMode.PERMISSIVE))


class Source:
    """Control that says what it is told to, at once."""

    connected = True
    since = 0.0
    failure = ""

    def __init__(self, views: Views) -> None:
        self.from_disk: set[str] = set()
        self.views = views

    def want(self, name: str) -> None:
        self.views.want((name,))

    def done(self, name: str) -> None:
        pass

    def touch(self, name: str) -> None:
        pass

    def load(self, name: str) -> bool:
        return False

    def lacking(self, name: str) -> str:
        return "there is no disk"

    def close(self) -> None:
        pass


def _source(_settings: object, _client: object, views: Views, _changed: object) -> Any:
    return Source(views)


def gate(*known: Inbound, **more: Any) -> Gate:
    """Of port 9080, in a mesh that knows these policies."""
    settings = bootstrap({}, allow_plaintext=True, first_call_timeout=0.01, state_dir="")
    mesh = Mesh(settings, _source)
    policies: Mapping[str, Inbound] = MappingProxyType({one.name: one for one in known})
    mesh._view = SimpleNamespace(inbound=policies, version="7", tables={})  # type: ignore[assignment]
    return Gate(mesh, 9080, **more)


def head(path: str = "/x") -> RequestHead:
    return RequestHead("GET", "http", "reviews", path, [(b"x-forwarded-client-cert", f"URI={PAGE}".encode())])


async def both(one: Gate, asked: RequestHead, peer: Peer) -> Admitted | Reply:
    """The verdict, which is the same for threads and for tasks."""
    verdict, other = one.admit(asked, peer), await one.aadmit(asked, peer)
    assert type(verdict) is type(other)
    if isinstance(verdict, Reply):
        assert verdict == other
    return verdict


async def test_before_the_policy_is_known_nobody_is_let_in() -> None:
    unknown = gate()
    with pytest.raises(ControlUnavailable, match="did not send"):
        unknown.prepare()
    with pytest.raises(ControlUnavailable, match="did not send"):
        await unknown.aprepare()
    for peer in (NOBODY, PEER):
        with pytest.raises(KeyError):
            unknown.admit(head(), peer)
        with pytest.raises(KeyError):
            await unknown.aadmit(head(), peer)
    assert repr(unknown) == "<Gate of port 9080: no policy yet>"


async def test_strict_refuses_who_shows_no_certificate() -> None:
    verdict = await both(gate(STRICT), head(), NOBODY)
    assert isinstance(verdict, Reply)
    assert (verdict.status, verdict.body) == (403, b"mutual TLS is required")
    facts = verdict.facts
    assert (facts.document, facts.source) == ("PeerAuthentication a/b", "m.yaml:3")
    assert (facts.detail, facts.config_version) == ("strict_mutual_tls", "4")


async def test_tls_alone_proves_nothing() -> None:
    verdict = await both(gate(STRICT), head(), Peer(("10.0.0.1", 4000), ("10.0.0.2", 9080), tls=True))
    assert isinstance(verdict, Reply)


async def test_strict_lets_a_peer_in() -> None:
    verdict = await both(gate(STRICT), head(), PEER)
    assert isinstance(verdict, Admitted)
    assert (verdict.caller.principal, verdict.caller.service_account) == (PAGE, "productpage")


async def test_permissive_lets_nobody_in_as_nobody() -> None:
    verdict = await both(gate(OPEN), head("/a/../x"), NOBODY)
    assert isinstance(verdict, Admitted)
    assert (verdict.caller.principal, verdict.head.path, verdict.head.headers) == ("", "/x", [])


def test_a_request_is_decided_by_the_policy_of_its_moment() -> None:
    changing = gate(OPEN)
    assert isinstance(changing.admit(head(), NOBODY), Admitted)
    changing.mesh._view = gate(STRICT).mesh.view
    assert isinstance(changing.admit(head(), NOBODY), Reply)
    assert repr(changing) == "<Gate of port 9080: STRICT>"


WANTED = BodyWanted(10)
SHOWING = Inbound(
    inbound_listener(9080), ServerTls(), (ExtAuthz("ext", HttpAuthority("c"), body=WANTED, fail_open=True),)
)


@pytest.mark.parametrize(
    ("found", "status", "asked"),
    [
        (Shown(b"abc"), 0, [Shown(b"abc")]),
        (None, 0, [None]),
        (Unread.TOO_LARGE, 413, []),
        (Unread.TOO_SLOW, 408, []),
    ],
)
async def test_the_body_is_read_for_an_authority_that_wants_it(
    found: Found, status: int, asked: list[Shown | None]
) -> None:
    seen: list[Shown | None] = []
    wanted: list[BodyWanted] = []

    def ask(check: Check) -> Opinion:
        seen.append(check.body)
        return Passed()

    async def aask(check: Check) -> Opinion:
        return ask(check)

    def read(how: BodyWanted) -> Found:
        wanted.append(how)
        return found

    async def aread(how: BodyWanted) -> Found:
        return read(how)

    one = gate(SHOWING, ask=ask, aask=aask)
    for verdict in (one.admit(head(), NOBODY, read), await one.aadmit(head(), NOBODY, aread)):
        assert (verdict.status if isinstance(verdict, Reply) else 0) == status
    assert (seen, wanted) == (asked * 2, [WANTED] * 2)


async def test_where_nobody_can_read_the_body_nobody_gets_in() -> None:
    verdict = await both(gate(SHOWING), head(), NOBODY)
    assert isinstance(verdict, Reply)
    assert (verdict.status, verdict.facts.detail) == (500, "request_body_unreadable")


def test_in_plain_text_no_chain_is_vouched_for() -> None:
    assert (gate(OPEN).contexts, gate(OPEN).principal("anything")) == (None, "")
