"""One inbound request decided aloud: what the mode of a port makes of its callers."""

import pytest

from meshlib.cli.explain_inbound import decide_inbound, lines
from meshlib.cli.explain_served import Served
from meshlib.core.authz import conditions
from meshlib.core.authz.rbac import Policy, Rbac, Rules, Verb
from meshlib.core.cors import Cors, CorsPolicy
from meshlib.core.headers import EMPTY
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.match import RouteMatch
from meshlib.core.route.rule import Forward, Origin, Route, WeightedCluster
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.route.text import TextKind, TextMatch

CART = "spiffe://cluster.local/ns/shop/sa/cart"
OLD = "spiffe://old.example/ns/shop/sa/cart"
STRANGER = "spiffe://other/ns/shop/sa/cart"
DOMAINS = ("Cluster.local", "old@example")
HEAD = RequestHead("GET", "http", "reviews:9080", "/", [])
ASKS = (b"access-control-request-method", b"GET")
WRITTEN = Origin("PeerAuthentication default/a", "a.yaml:3")


def decided(
    mode: InboundMode, who: str, *, origin: Origin | None = None, authority: bool = True
) -> list[str]:
    tls = ServerTls(mode, () if mode is InboundMode.DISABLE else DOMAINS)
    inbound = Inbound("in", tls, origin=origin or Origin())
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", 9080), who, "", bool(who))
    answer = decide_inbound(Served(inbound, "5.1", authority), HEAD, peer, 0.0)
    assert answer["config_version"] == "5.1"
    assert answer["admitted"] is (answer["detail"] == "")
    return lines(answer)


REFUSED = (
    "[red]cut off[/]: the certificate is refused in the handshake: it is not of cluster.local, old.example"
)
PLAIN = "[red]cut off[/]: plain text is cut off before a request is read: mutual TLS is STRICT"


@pytest.mark.parametrize(
    ("mode", "who", "said", "verdict"),
    [
        (InboundMode.STRICT, CART, CART, "[green]let in[/]"),
        (InboundMode.STRICT, OLD, OLD, "[green]let in[/]"),
        (InboundMode.STRICT, STRANGER, STRANGER, REFUSED),
        (InboundMode.STRICT, "", "nobody (plain text)", PLAIN),
        (InboundMode.PERMISSIVE, CART, CART, "[green]let in[/]"),
        (InboundMode.PERMISSIVE, STRANGER, STRANGER, REFUSED),
        (InboundMode.PERMISSIVE, "", "nobody (plain text)", "[green]let in[/]"),
        (InboundMode.DISABLE, "", "nobody (plain text)", "[green]let in[/]"),
        (InboundMode.DISABLE, STRANGER, f"{STRANGER}, which comes in plain text and shows nothing of it",
         "[green]let in[/]"),
    ],
)  # fmt: skip
def test_mode_and_caller(mode: InboundMode, who: str, said: str, verdict: str) -> None:
    first, second, last = decided(mode, who)
    assert first == f"  from [cyan]{said}[/]"
    assert second == f"  mutual TLS {mode.name} [dim](the default)[/]"
    assert last == f"  {verdict}"


@pytest.mark.parametrize(
    ("mode", "origin", "authority", "said"),
    [
        (InboundMode.PERMISSIVE, None, False, "the default"),
        (InboundMode.STRICT, WRITTEN, False, "PeerAuthentication default/a a.yaml:3"),
        (InboundMode.DISABLE, WRITTEN, True, "PeerAuthentication default/a a.yaml:3"),
        (InboundMode.DISABLE, None, False, "PERMISSIVE, but there is no certificate authority"),
        (
            InboundMode.DISABLE,
            WRITTEN,
            False,
            f"{WRITTEN.document} a.yaml:3: DISABLE, or PERMISSIVE, but there is no certificate authority",
        ),
    ],
)
def test_who_decided_the_mode(mode: InboundMode, origin: Origin | None, authority: bool, said: str) -> None:
    assert decided(mode, CART, origin=origin, authority=authority)[1].partition(" [dim]")[2] == f"({said})[/]"


REMOTE = Policy("remote", conditions.remote_ip(conditions.Block("203.0.113.0", 24)))
PATH = Policy("path", conditions.url_path(TextMatch(TextKind.EXACT, "/a:b")))


@pytest.mark.parametrize("shadow", ["istio_dry_run_deny_", "istio_ext_authz_"])
def test_steps_say_what_the_verdict_is_made_of(shadow: str) -> None:
    """The client's address is that of the headers, and a path is judged in all its readings."""
    rules = Rules(Verb.DENY, (PATH, REMOTE))
    inbound = Inbound("in", ServerTls(), (Rbac(shadow=rules, shadow_prefix=shadow), Rbac(rules=rules)))
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", 9080))
    for path, address, matched in (
        ("/a%3Ab", b"10.0.0.1", [True, False]),
        ("//a:b", b"10.0.0.1", [True, False]),
        ("/a:b%0A", b"10.0.0.1", [True, False]),
        ("/", b"10.0.0.1, 203.0.113.7", [False, True]),
        ("/", b"203.0.113.7, 10.0.0.1", [False, False]),
    ):
        head = RequestHead("GET", "http", "h", path, [(b"x-forwarded-for", address)])
        answer = decide_inbound(Served(inbound, "1", True), head, peer, 0.0)
        title = "CUSTOM" if shadow == "istio_ext_authz_" else "dry run"
        assert [step["filter"] for step in answer["steps"]] == [title, title, "DENY", "DENY"]
        assert [step["matched"] for step in answer["steps"]] == matched * 2
        assert answer["admitted"] is not any(matched)


def test_what_others_may_read_otherwise_is_refused() -> None:
    inbound, peer = Inbound("in", ServerTls()), Peer(("127.0.0.1", 0), ("127.0.0.1", 9080))
    answer = decide_inbound(Served(inbound, "1", True), RequestHead("GET", "http", "a,b", "/"), peer, 0.0)
    assert (answer["admitted"], answer["status"], answer["detail"]) == (False, 400, "ambiguous_host")


def test_cors_is_told_of_requests_of_other_pages() -> None:
    policy = CorsPolicy((TextMatch(TextKind.EXACT, "https://a.com"),))
    to = Forward((WeightedCluster("inbound|9080||", 1, 1, EMPTY, EMPTY),), 1)
    route = Route(
        "page", RouteMatch(), to, EMPTY, EMPTY, Origin("VirtualService d/v", "v.yaml:4"), cors=policy
    )
    table = RouteTable("in", [VirtualHost("v", ("*",), (route,))])
    inbound = Inbound("in", ServerTls(InboundMode.DISABLE), (Cors(),), routes=table)
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", 9080))
    for origin, mark in ((b"https://a.com", "[green]✓[/]"), (b"https://b.com", "[dim]✗[/]")):
        head = RequestHead("GET", "http", "reviews:9080", "/", [(b"origin", origin)])
        said = lines(decide_inbound(Served(inbound, "1", True), head, peer, 0.0))
        assert said[2:] == [
            f"  {mark} CORS page [cyan]VirtualService d/v v.yaml:4[/]",
            "  [green]let in[/]",
        ]
    assert len(lines(decide_inbound(Served(inbound, "1", True), HEAD, peer, 0.0))) == 3
    asked = RequestHead("OPTIONS", "http", "a", "/", [(b"origin", b"https://a.com"), ASKS])
    assert lines(decide_inbound(Served(inbound, "1", True), asked, peer, 0.0))[-1] == (
        "  [red]answered 200[/]: cors_response [cyan]VirtualService d/v v.yaml:4[/]"
    )
