"""What the names of a cluster amount to once their addresses are known."""

import pytest

from meshlib.core.balance.dns import Family, Named, named_address
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints

A, B = ("a.example", Family.V4_PREFERRED), ("b.example", Family.V4_PREFERRED)


def named(*endpoints: Endpoint, logical: bool = False) -> Named:
    listed = EndpointSet((LocalityEndpoints("r/z", 1, 7, endpoints),))
    return Named(listed, logical, Family.V4_PREFERRED)


def keys(found: EndpointSet) -> list[str]:
    return [one.key for group in found.localities for one in group.endpoints]


def test_each_address_is_an_endpoint_with_all_that_is_said_of_its_name() -> None:
    about = {"weight": 3, "healthy": False, "metadata": (("k", "v"),), "transport": frozenset({("t", "m")})}
    asks = named(Endpoint("a.example", 80, **about), Endpoint("b.example", 81), Endpoint("10.0.0.9", 82))  # type: ignore[arg-type]
    assert asks.questions == {A, B}
    found = asks.resolved({A: ("10.0.0.1", "fd00::1"), B: ("10.0.0.2",)})
    assert keys(found) == ["10.0.0.1:80", "[fd00::1]:80", "10.0.0.2:81", "10.0.0.9:82"]
    (group,) = found.localities
    assert (group.locality, group.priority, group.weight) == ("r/z", 1, 7)
    first = group.endpoints[0]
    assert first == Endpoint("10.0.0.1", 80, hostname="a.example", **about)  # type: ignore[arg-type]
    assert first.address == ("10.0.0.1", 80)


def test_a_name_without_an_address_is_no_endpoint() -> None:
    assert keys(named(Endpoint("a.example", 80), Endpoint("b.example", 80)).resolved({A: ()})) == []
    assert keys(named(Endpoint("a.example", 80), logical=True).resolved({A: ()})) == []


def test_an_endpoints_own_host_name_stays() -> None:
    found = named(Endpoint("a.example", 80, hostname="own")).resolved({A: ("10.0.0.1",)})
    assert found.localities[0].endpoints[0].hostname == "own"


def test_a_logical_name_stays_one_endpoint_whatever_it_stands_for() -> None:
    asks = named(Endpoint("a.example", 80), logical=True)
    one = asks.resolved({A: ("10.0.0.1", "10.0.0.2")}).localities[0].endpoints[0]
    other = asks.resolved({A: ("10.0.0.2", "10.0.0.1")}).localities[0].endpoints[0]
    assert (one.key, one.address, one.at) == ("a.example:80", ("a.example", 80), ("10.0.0.1", 80))
    assert (other.key, other.address, other.at) == ("a.example:80", ("a.example", 80), ("10.0.0.2", 80))


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "fe80::1%eth0"])
def test_an_address_is_not_asked_for(host: str) -> None:
    for logical in (False, True):
        asks = named(Endpoint(host, 80), logical=logical)
        assert not asks.questions
        assert asks.resolved({}) == asks.endpoints


@pytest.mark.parametrize(
    ("authority", "secured", "address"),
    [
        ("a.example", False, ("a.example", 80)),
        ("a.example", True, ("a.example", 443)),
        ("a.example:8080", True, ("a.example", 8080)),
        ("[::1]:8080", False, ("::1", 8080)),
        ("[::1]", False, ("::1", 80)),
        ("::1", False, ("::1", 80)),
        ("a.example:x", False, ("a.example:x", 80)),
        ("", False, ("", 80)),
    ],
)
def test_where_a_requests_own_host_leads(authority: str, secured: bool, address: tuple[str, int]) -> None:
    assert named_address(authority, secured) == address
