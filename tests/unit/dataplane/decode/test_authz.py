"""RBAC from the wire: what it decides, and what is refused."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.authz.question import Question
from meshlib.core.authz.rbac import SPACE, Denied, Rbac
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.decode.authz import decode_rbac
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

WEB = "spiffe://cluster.local/ns/default/sa/web"
ANY = {"any": True}


def rbac(action: str, key: str = "rules", **policies: Any) -> Rbac:
    found = {
        name: {"permissions": [permission], "principals": [principal]}
        for name, (permission, principal) in policies.items()
    }
    return decode_rbac("rbac", pb.from_dict(pb.RBAC, {key: {"action": action, "policies": found}}))


def question(path: str = "/", principal: str = WEB, *headers: tuple[bytes, bytes], sni: str = "") -> Question:
    peer = Peer(("10.0.0.1", 1), ("::ffff:10.0.0.2", 9080), principal, sni, bool(principal))
    return Question(RequestHead("GET", "http", "h", path, list(headers)), peer)


def holds(permission: Any = ANY, principal: Any = ANY, **asked: Any) -> bool:
    return rbac("ALLOW", p=(permission, principal)).judge(question(**asked)) is None


def test_allow_without_a_policy_lets_nobody_in() -> None:
    denied = rbac("ALLOW").judge(question())
    assert denied == Denied(None)
    assert denied.detail == "rbac_access_denied_matched_policy[none]"


def test_deny_without_a_policy_and_no_rules_at_all_let_everybody_in() -> None:
    assert rbac("DENY").judge(question()) is None
    assert decode_rbac("rbac", pb.RBAC()).judge(question()) is None


def test_the_first_policy_by_name_is_told() -> None:
    denied = rbac("DENY", b=(ANY, ANY), a=(ANY, ANY)).judge(question())
    assert denied is not None
    assert denied.detail == "rbac_access_denied_matched_policy[a]"


NAMES = ("web", "batch", "page")
LEAVES = st.one_of(
    st.sampled_from([{"authenticated": {"principal_name": {"suffix": f"/sa/{name}"}}} for name in NAMES]),
    st.sampled_from([{"authenticated": {}}, ANY, {"url_path": {"path": {"exact": "/a"}}}]),
    st.just({"direct_remote_ip": {"address_prefix": "10.0.0.2", "prefix_len": 32}}),
)
PRINCIPALS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda ids: {"and_ids": {"ids": ids}}),
        st.lists(inner, min_size=1, max_size=3).map(lambda ids: {"or_ids": {"ids": ids}}),
        inner.map(lambda one: {"not_id": one}),
    ),
    max_leaves=5,
)


@given(st.lists(PRINCIPALS, max_size=4))
def test_policies_that_a_certificate_rules_out_are_no_others_than_those_that_do_not_match(
    principals: list[Any],
) -> None:
    rules = rbac("ALLOW", **{f"p{number}": (ANY, one) for number, one in enumerate(principals)}).rules
    assert rules is not None
    for name in (*NAMES, *NAMES):
        for path, principal in itertools.product(("/a", "/b"), (WEB.replace("web", name), "")):
            asked = question(path, principal)
            all_of_them = next((one for one in rules.policies if one.holds(asked)), None)
            assert rules.match(asked) == all_of_them


def test_what_is_kept_of_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.core.authz.rbac._MOST_KEPT", 10)
    for policies in ({}, {"a": (ANY, ANY), "b": (ANY, ANY)}):
        rules = rbac("ALLOW", **policies).rules
        assert rules is not None
        for number in range(50):
            rules.match(question("/", f"{WEB}{number}"))
        assert len(rules._by_names) <= 10


def test_log_keeps_nobody_out() -> None:
    assert rbac("LOG", p=(ANY, ANY)).judge(question()) is None


def test_what_a_shadow_would_have_done_is_left_in_the_metadata() -> None:
    message = pb.from_dict(
        pb.RBAC,
        {
            "shadow_rules_stat_prefix": "dry_",
            "shadow_rules": {
                "action": "DENY",
                "policies": {"p": {"permissions": [ANY], "principals": [ANY]}},
            },
        },
    )
    asked = question()
    assert decode_rbac("rbac", message).judge(asked) is None
    left = {"dry_shadow_effective_policy_id": "p", "dry_shadow_engine_result": "denied"}
    assert asked.metadata == {SPACE: left}


@pytest.mark.parametrize(
    ("principal", "caller", "expected"),
    [
        ({"authenticated": {}}, WEB, True),
        ({"authenticated": {}}, "", False),
        ({"authenticated": {"principal_name": {"exact": WEB}}}, WEB, True),
        ({"authenticated": {"principal_name": {"exact": WEB}}}, WEB + "2", False),
        ({"authenticated": {"principal_name": {"safe_regex": {"regex": ".*"}}}}, "", False),
        ({"not_id": {"authenticated": {"principal_name": {"exact": WEB}}}}, "", True),
    ],
)
def test_a_peer_in_plain_text_is_nobody(principal: Any, caller: str, expected: bool) -> None:
    assert (rbac("ALLOW", p=(ANY, principal)).judge(question("/", caller)) is None) is expected


def test_an_ipv4_address_written_as_ipv6_is_ipv4() -> None:
    assert holds({"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 24}})
    assert not holds({"destination_ip": {"address_prefix": "::", "prefix_len": 0}})


def test_claims_of_a_token_are_compared_by_their_kind() -> None:
    def asks(value: Any) -> Rbac:
        matcher = {"filter": "f", "path": [{"key": "payload"}, {"key": "n"}], "value": value}
        return rbac("ALLOW", p=(ANY, {"metadata": matcher}))

    asked = question()
    asked.metadata["f"] = {"payload": {"n": ["a", 5, True, None]}}
    for value, expected in (
        ({"list_match": {"one_of": {"string_match": {"exact": "a"}}}}, True),
        ({"list_match": {"one_of": {"string_match": {"exact": "5"}}}}, False),
        ({"list_match": {"one_of": {"double_match": {"exact": 5}}}}, True),
        ({"list_match": {"one_of": {"double_match": {"exact": 1}}}}, False),
        ({"list_match": {"one_of": {"bool_match": True}}}, True),
        ({"list_match": {"one_of": {"null_match": {}}}}, True),
        ({"string_match": {"exact": "a"}}, False),
        ({"present_match": True}, True),
    ):
        assert (asks(value).judge(asked) is None) is expected, value
        assert asks(value).judge(question()) is not None


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ({"permissions": [], "principals": [ANY]}, "rules.policies[p].permissions: is empty"),
        ({"permissions": [{}], "principals": [ANY]}, "rules.policies[p].permissions[0]: no condition is set"),
        (
            {"permissions": [{"and_rules": {"rules": [ANY, {"header": {"name": ""}}]}}], "principals": [ANY]},
            "rules.policies[p].permissions[0].and_rules.rules[1].header.name: is empty",
        ),
        (
            {"permissions": [ANY], "principals": [{"filter_state": {"key": "x"}}]},
            "rules.policies[p].principals[0].filter_state: is not supported",
        ),
        (
            {"permissions": [ANY], "principals": [{"direct_remote_ip": {"address_prefix": "x"}}]},
            "rules.policies[p].principals[0].direct_remote_ip: 'x' is no IP address",
        ),
        (
            {"permissions": [ANY], "principals": [ANY], "condition": {"const_expr": {"bool_value": True}}},
            "rules.policies[p].condition: is not supported",
        ),
    ],
)
def test_what_can_not_be_decided_is_refused_by_its_path(policy: Any, path: str) -> None:
    with pytest.raises(Refused) as caught:
        decode_rbac("rbac", pb.from_dict(pb.RBAC, {"rules": {"policies": {"p": policy}}}))
    assert str(caught.value) == path


def test_conditions_can_not_be_nested_without_end() -> None:
    deep: Any = ANY
    for _ in range(40):
        deep = {"not_rule": deep}
    with pytest.raises(Refused, match="nested more than 32 deep"):
        rbac("ALLOW", p=(deep, ANY))
