"""What is asked of those who come through a tunnel: where it may lead, and where a caller's address is."""

from typing import Any

import pytest
import re2

from meshlib.control.compile import matchers
from meshlib.control.compile.tunnelled import ADDRESS, behind_tunnel, hbone_routes
from meshlib.xds import pb


def authorities(address: str) -> tuple[str, str]:
    """The pattern of those that are connected to, and of those among them that are not."""
    (host,) = hbone_routes(address, [], []).virtual_hosts
    (route,) = host.routes
    taken, refused = route.match.headers
    assert (taken.invert_match, refused.invert_match) == (False, True)
    return taken.string_match.safe_regex.regex, refused.string_match.safe_regex.regex


@pytest.mark.parametrize(("address", "written"), [("10.0.0.5", "10.0.0.5"), ("fd00::5", "[fd00::5]")])
def test_a_port_has_one_spelling(address: str, written: str) -> None:
    pattern, own = map(re2.compile, authorities(address))
    assert all(pattern.fullmatch(f"{written}:{port}") for port in range(1, 65536))
    refused = [port for port in range(1, 65536) if own.fullmatch(f"{written}:{port}")]
    assert refused == [15001, 15006, 15008]
    for port in (
        "",
        "0",
        "65536",
        "65540",
        "70000",
        "100000",
        "07000",
        "+7000",
        "-1",
        " 7000",
        "7000 ",
        "7e3",
    ):
        assert not pattern.fullmatch(f"{written}:{port}"), port
    for other in ("10x0.0.5:80", "110.0.0.5:80", "10.0.0.50:80", written, "", f"{written}:80:80"):
        assert not pattern.fullmatch(other), other


def rbac(*principals: dict[str, Any]) -> Any:
    made = pb.RBAC()
    made.rules.action = "DENY"
    made.rules.policies["a"].principals.extend(
        pb.message("envoy.config.rbac.v3.Principal")(**one) for one in principals
    )
    return made


@pytest.mark.parametrize("block", ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1", "fd00::/8"])
def test_addresses_are_looked_for_where_they_are(block: str) -> None:
    asked: dict[str, Any] = {"direct_remote_ip": matchers.network(block)}
    config = rbac(asked, {"not_id": asked}, {"and_ids": {"ids": [{"or_ids": {"ids": [asked]}}]}})
    behind_tunnel(config)
    assert "direct_remote_ip" not in str(config)
    plain, negated, nested = config.rules.policies["a"].principals
    expected = matchers.network(block)
    for one in (plain, negated.not_id, nested.and_ids.ids[0].or_ids.ids[0]):
        assert one.filter_state.key == ADDRESS
        (found,) = one.filter_state.address_match.ranges
        assert (found.address_prefix, found.prefix_len.value) == (
            expected.address_prefix,
            expected.prefix_len.value,
        )
