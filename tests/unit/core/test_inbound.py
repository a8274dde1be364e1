"""One inbound request, step by step."""

from collections.abc import Sequence
from typing import Any

import pytest

from meshlib.core.actions import Reply
from meshlib.core.authz.external import Check, ExtAuthz, HttpAuthority
from meshlib.core.authz.opinion import Blocked, NoAnswer, Opinion, Passed, Told
from meshlib.core.authz.path import EscapedSlashes, PathOptions
from meshlib.core.authz.rbac import Policy, Rbac, Rules, Verb
from meshlib.core.inbound import Admitted, Inbound, arrive
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Header, Peer, RequestHead
from meshlib.core.route.rule import Origin

WEB = "spiffe://cluster.local/ns/shop/sa/web"
MESH = Peer(("10.0.0.1", 1), ("10.0.0.2", 9080), WEB, "", True)
STRANGER = Peer(("203.0.113.9", 1), ("10.0.0.2", 9080))
AS_ISTIO = PathOptions()
NAME = "ns[default]-policy[p]-rule[0]"
LINE = Origin("AuthorizationPolicy default/p", "mesh.yaml:7")


def rbac(verb: Verb, holds: Any) -> Rbac:
    return Rbac(rules=Rules(verb, (Policy(NAME, holds),)))


def port(*filters: object, paths: PathOptions = AS_ISTIO) -> Inbound:
    return Inbound("inbound", ServerTls(), filters, paths=paths, policies={NAME: LINE}, version="5")


def end(
    inbound: Inbound,
    path: str = "/",
    headers: Sequence[Header] = (),
    peer: Peer = MESH,
    opinions: Sequence[Opinion] = (),
) -> tuple[Admitted | Reply, list[Check]]:
    """What comes of a request, and who was asked."""
    flow = arrive(inbound, RequestHead("GET", "http", "h", path, headers), peer, "", 0.0)
    asked: list[Check] = []
    try:
        for opinion in (None, *opinions):
            asked.append(flow.send(opinion) if opinion else next(flow))  # noqa: PERF401 - it ends by an error
    except StopIteration as ended:
        return ended.value, asked
    raise AssertionError("it asks once more")


def admitted(
    inbound: Inbound, path: str = "/", headers: Sequence[Header] = (), peer: Peer = MESH
) -> Admitted:
    found, _ = end(inbound, path, headers, peer)
    assert isinstance(found, Admitted)
    return found


def test_without_filters_everybody_is_let_in_and_named() -> None:
    caller = admitted(port()).caller
    assert (caller.principal, caller.namespace, caller.service_account) == (WEB, "shop", "web")
    assert (caller.trust_domain, caller.attempt, dict(caller.claims)) == ("cluster.local", 1, {})
    assert admitted(port(), peer=STRANGER).caller.principal == ""


def test_the_attempt_is_believed_of_mesh_peers_only() -> None:
    said = [(b"x-envoy-attempt-count", b"3")]
    assert admitted(port(), headers=said).caller.attempt == 3
    assert admitted(port(), headers=said, peer=STRANGER).caller.attempt == 1
    assert admitted(port(), headers=[(b"x-envoy-attempt-count", b"-1")]).caller.attempt == 1


def test_the_application_gets_the_path_that_was_decided_on() -> None:
    paths: list[bytes] = []

    def note(question: Any) -> bool:
        paths.extend(question.paths)
        return True

    inbound = port(rbac(Verb.ALLOW, note))
    assert admitted(inbound, "/public/..;/admin?x=/../y").head.path == "/admin?x=/../y"
    assert paths == [b"/admin"]


def test_a_whole_url_is_taken_apart() -> None:
    head = admitted(port(), "http://other:80/a/../b").head
    assert (head.authority, head.path) == ("other:80", "/b")


def test_a_denial_says_which_line_made_it() -> None:
    reply, _ = end(port(rbac(Verb.DENY, lambda _: True)))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (403, b"RBAC: access denied")
    facts = reply.facts
    assert (facts.route, facts.document, facts.source) == (NAME, LINE.document, LINE.source)
    assert (facts.flag, facts.config_version) == ("-", "5")
    assert facts.detail == f"rbac_access_denied_matched_policy[{NAME}]"


def test_a_denial_by_no_policy_names_none() -> None:
    reply, _ = end(port(rbac(Verb.ALLOW, lambda _: False)))
    assert isinstance(reply, Reply)
    assert (reply.facts.route, reply.facts.source) == ("", "")
    assert reply.facts.detail == "rbac_access_denied_matched_policy[none]"


@pytest.mark.parametrize(
    ("path", "status", "where"),
    [("/a%00", 400, ()), ("/a#b", 400, ()), ("/a%2fb", 307, ((b"location", b"/a/b"),))],
)
def test_a_path_that_is_none(path: str, status: int, where: tuple[Header, ...]) -> None:
    reply, _ = end(port(paths=PathOptions(escaped_slashes=EscapedSlashes.REDIRECT)), path)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.headers, reply.facts.detail) == (status, where, "path_normalization_failed")


def test_the_clients_address_comes_from_the_last_proxy() -> None:
    seen: list[str] = []
    inbound = port(rbac(Verb.LOG, lambda question: seen.append(question.remote) is None))
    for said in (b"1.1.1.1, 2.2.2.2", b"nonsense", b""):
        admitted(inbound, headers=[(b"x-forwarded-for", said)])
    assert seen == ["2.2.2.2", "10.0.0.1", "10.0.0.1"]


EXTERNAL = ExtAuthz("ext", HttpAuthority("c"))


def test_who_is_asked_may_change_headers_but_not_the_message() -> None:
    passed = Passed(
        set=((b"x-user", b"jason"), (b"host", b"evil"), (b":path", b"/admin"), (b"content-length", b"0")),
        append=((b"x-a", b"2"),),
        remove=(b"cookie", b"host"),
        to_client=(Told(b"x-seen", b"1"),),
    )
    headers = [(b"X-User", b"forged"), (b"x-a", b"1"), (b"Cookie", b"c"), (b"content-length", b"5")]
    found, asked = end(port(EXTERNAL), "/a", headers, STRANGER, (passed,))
    assert isinstance(found, Admitted)
    assert asked[0].filter is EXTERNAL
    assert found.head.headers == [
        *((b"x-a", b"1"), (b"content-length", b"5"), (b"x-user", b"jason"), (b"x-a", b"2"))
    ]
    assert (found.head.authority, found.head.path) == ("h", "/a")
    assert found.response_headers == (Told(b"x-seen", b"1"),)


def test_what_the_authority_says_of_a_request_can_be_asked_for() -> None:
    seen: list[object] = []
    later = rbac(
        Verb.LOG, lambda question: seen.append(question.metadata["envoy.filters.http.ext_authz"]) is None
    )
    said = (Passed(metadata={"kind": "guest", "n": 1}), Passed(metadata={"kind": "friend"}))
    end(port(EXTERNAL, later, EXTERNAL, later), opinions=said)
    assert seen == [{"kind": "guest", "n": 1}, {"kind": "friend", "n": 1}]


def test_a_refusal_of_the_authority_is_the_answer() -> None:
    reply, _ = end(port(EXTERNAL), opinions=(Blocked(302, ((b"location", b"/login"),), b"x"),))
    assert isinstance(reply, Reply)
    told = ((b"location", b"/login"), (b"content-type", b"text/plain"))
    assert (reply.status, reply.headers, reply.body) == (302, told, b"x")
    assert (reply.facts.flag, reply.facts.detail) == ("UAEX", "ext_authz_denied")


@pytest.mark.parametrize("status", [403, 503])
def test_without_an_answer_the_request_is_refused(status: int) -> None:
    closed = ExtAuthz("ext", HttpAuthority("c"), status_on_error=status)
    reply, _ = end(port(closed), opinions=(NoAnswer("refused"),))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.facts.flag) == (status, "UAEX")
    assert reply.facts.detail == "ext_authz_error: refused"


def test_without_an_answer_the_request_passes_where_that_is_said() -> None:
    opened = ExtAuthz("ext", HttpAuthority("c"), fail_open=True, mark_failed_open=True)
    found, _ = end(port(opened), peer=STRANGER, opinions=(NoAnswer("refused"),))
    assert isinstance(found, Admitted)
    assert found.head.headers == [(b"x-envoy-auth-failure-mode-allowed", b"true")]


def test_a_request_that_is_not_asked_about_passes() -> None:
    found, asked = end(port(ExtAuthz("ext", HttpAuthority("c"), enabled=lambda _: False)))
    assert isinstance(found, Admitted)
    assert asked == []


def test_who_may_come_in_is_decided_after_the_authority() -> None:
    reply, asked = end(port(EXTERNAL, rbac(Verb.DENY, lambda _: True)), opinions=(Passed(),))
    assert isinstance(reply, Reply)
    assert (reply.status, len(asked)) == (403, 1)
    reply, asked = end(port(rbac(Verb.DENY, lambda _: True), EXTERNAL))
    assert asked == []


def test_what_is_no_filter_lets_nobody_in() -> None:
    with pytest.raises(TypeError, match="is no filter"):
        end(port(object()))
