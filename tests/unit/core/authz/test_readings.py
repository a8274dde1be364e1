"""A path has readings: as it was sent, as the application is given it, and as a router forgives it."""

import pytest

from meshlib.core.authz.conditions import url_path
from meshlib.core.authz.path import beneath, given, plain
from meshlib.core.authz.question import Question
from meshlib.core.authz.rbac import SPACE, Denied, Policy, Rbac, Rules, Verb
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.text import TextKind, TextMatch

PEER = Peer(("10.0.0.1", 1), ("10.0.0.2", 2))
EXACT, PREFIX = TextKind.EXACT, TextKind.PREFIX


def asked(path: str) -> Question:
    return Question(RequestHead("GET", "http", "a", path, []), PEER)


def rules(verb: Verb, *paths: str, kind: TextKind = EXACT) -> Rules:
    return Rules(verb, tuple(Policy(path, url_path(TextMatch(kind, path))) for path in paths))


@pytest.mark.parametrize(
    ("path", "bytes_", "written"),
    [
        ("/a%3ab", b"/a:b", b"/a:b"),
        ("/a%20b", b"/a b", b"/a%20b"),
        ("/%c3%a9", "/é".encode(), b"/%C3%A9"),
        ("/%ff", b"/\xff", b"/%FF"),
        ("/a%2fb%5cc", b"/a%2fb%5cc", b"/a%2Fb%5Cc"),
        ("/a%252Fb", b"/a%2Fb", b"/a%252Fb"),
        ("/a%3Fb%23", b"/a?b#", b"/a%3Fb%23"),
        ("/100%", b"/100%", b"/100%"),
    ],
)
def test_readings(path: str, bytes_: bytes, written: bytes) -> None:
    assert (given(path), plain(path)) == (bytes_, written)
    (decoded,) = asked(f"{path}?q=%3A").readings()
    assert decoded.paths == (bytes_, written)
    assert decoded.head.path == f"{bytes_.decode('latin-1')}?q=%3A"


def test_without_an_escape_there_is_one() -> None:
    assert asked("/a:b?c=%20").readings() == ()
    assert asked("/a?b=http://c").readings() == ()


@pytest.mark.parametrize(
    ("path", "readings"),
    [
        ("//admin", [(b"/admin", b"/admin")]),
        ("/a///b//", [(b"/a/b/", b"/a/b/")]),
        ("/admin%0a", [(b"/admin\n", b"/admin%0A"), (b"/admin", b"/admin")]),
        ("//%61%0A?x=//", [(b"//a\n", b"//a%0A"), (b"/a", b"/a")]),
        ("/admin%0A%0A", [(b"/admin\n\n", b"/admin%0A%0A"), (b"/admin\n", b"/admin%0A")]),
        ("/%2f/admin", [(b"/%2f/admin", b"/%2F/admin")]),
        ("//", [(b"/", b"/")]),
    ],
)
def test_a_router_forgives_slashes_and_a_line_break(path: str, readings: list[tuple[bytes, bytes]]) -> None:
    assert [reading.paths for reading in asked(path).readings()] == readings


@pytest.mark.parametrize(
    ("denied", "path", "named"),
    [
        ("/a:b", "/a%3Ab", "/a:b"),
        ("/a%3Ab", "/a%3Ab", "/a%3Ab"),
        ("/a%3Ab", "/a%3ab", "/a%3Ab"),
        ("/é", "/%C3%A9", "/é"),
        ("/%C3%A9", "/%c3%a9", "/%C3%A9"),
        ("/a:b", "/a%253Ab", None),
        ("/a/b", "/a%2Fb", None),
        ("/a", "//a", "/a"),
        ("/a/b", "/a//b", "/a/b"),
        ("/a", "/a%0A", "/a"),
        ("/a", "/%61%0a", "/a"),
        ("/a", "/a%0a%0a", None),
        ("/to/http://x", "/to/http://x", "/to/http://x"),
    ],
)
def test_deny_takes_either(denied: str, path: str, named: str | None) -> None:
    found = Rbac(rules=rules(Verb.DENY, denied)).judge(asked(path))
    assert (found and found.policy and found.policy.name) == named


@pytest.mark.parametrize(
    ("allowed", "path", "passes"),
    [
        (["/a%3Ab"], "/a%3Ab", True),
        (["/a:b"], "/a%3Ab", False),
        (["/a%3ab"], "/a%3ab", True),
        (["/a%20b"], "/a%20b", True),
        (["/a b"], "/a%20b", False),
        (["/a%"], "/a%", True),
        (["/a"], "//a", False),
        (["//a"], "//a", True),
        (["/to/http://x", "/to"], "/to/http://x", True),
        (["/to/http://a%20b"], "/to/http://a%20b", True),
        (["/a%0A"], "/a%0A", True),
    ],
)
def test_allow_needs_all(allowed: list[str], path: str, passes: bool) -> None:
    found = Rbac(rules=rules(Verb.ALLOW, *allowed)).judge(asked(path))
    assert found == (None if passes else Denied(None))


def test_what_is_allowed_but_for_a_path_is_not_reached_by_its_escapes() -> None:
    public, but = url_path(TextMatch(PREFIX, "/public")), url_path(TextMatch(EXACT, "/public:no"))
    policy = Policy("p", lambda question: public(question) and not but(question))
    rbac = Rbac(rules=Rules(Verb.ALLOW, (policy,)))
    assert rbac.judge(asked("/public/%20")) is None
    assert rbac.judge(asked("/public%3Ano")) == Denied(None)
    assert rbac.judge(asked("/public//x")) is None
    assert rbac.judge(asked("/public:no%0a")) == Denied(None)


def test_a_template_takes_the_escape_of_a_letter_for_one() -> None:
    pattern = TextMatch(TextKind.REGEX, "/users/[a-zA-Z0-9%]+/page")
    allow = Rbac(rules=Rules(Verb.ALLOW, (Policy("p", url_path(pattern)),)))
    assert allow.judge(asked("/users/jos%C3%A9/page")) is None


def test_audits_and_shadows_are_of_both_too() -> None:
    question = asked("/a%3Ab")
    Rbac(rules=rules(Verb.LOG, "/a:b"), shadow=rules(Verb.DENY, "/a:b"), shadow_prefix="x_").judge(question)
    assert question.metadata[SPACE] == {
        "x_shadow_effective_policy_id": "/a:b",
        "x_shadow_engine_result": "denied",
    }
    assert rules(Verb.LOG, "/a:b").judge(question) == (rules(Verb.LOG, "/a:b").policies[0], True)


@pytest.mark.parametrize(
    ("path", "root", "is_beneath"),
    [
        ("/app", "/app", True),
        ("/app/x", "/app", True),
        ("/app/x", "/app/", True),
        ("/application", "/app", False),
        ("/x", "/app", False),
        ("/x", "", True),
        ("/x", "/", True),
    ],
)
def test_beneath(path: str, root: str, is_beneath: bool) -> None:
    assert beneath(path, root) is is_beneath
