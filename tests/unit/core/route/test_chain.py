"""Which filter chain takes a connection."""

import random
from collections import Counter
from ipaddress import ip_network

import pytest

from meshlib.core.route.chain import Connections, FilterChain, Share


def chain(name: str, *, names: tuple[str, ...] = (), subnets: tuple[str, ...] = ()) -> FilterChain:
    return FilterChain((Share(name, 1, 1),), name, names, tuple(map(ip_network, subnets)))


def found(connections: Connections, address: str = "", name: str = "") -> str:
    taken = connections.find(address, name)
    return "" if taken is None else taken.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.example", "exact"),
        ("A.Example", "exact"),
        ("x.a.example", "wide"),
        ("y.x.a.example", "wide"),
        ("b.example", "wider"),
        ("example", "rest"),
        ("xa.example", "wider"),
        ("", "rest"),
        (".", "rest"),
    ],
)
def test_the_closest_name_counts(name: str, expected: str) -> None:
    connections = Connections(
        [
            chain("rest"),
            chain("wider", names=("*.example",)),
            chain("wide", names=("*.a.example",)),
            chain("exact", names=("a.example",)),
        ]
    )
    assert found(connections, name=name) == expected


@pytest.mark.parametrize(
    ("address", "name", "expected"),
    [
        ("10.1.2.3", "", "host"),
        ("10.1.2.4", "", "narrow"),
        ("10.1.9.9", "a.example", "named"),
        ("10.1.9.9", "", "default"),  # the longest subnet alone counts: there is no way back to a wider one
        ("10.9.9.9", "", "wide"),
        ("11.0.0.1", "", "rest"),
        ("fd00::1", "", "six"),
        ("::1", "", "rest"),
        ("", "", "rest"),
    ],
)
def test_the_longest_subnet_counts_before_the_name(address: str, name: str, expected: str) -> None:
    connections = Connections(
        [
            chain("rest"),
            chain("wide", subnets=("10.0.0.0/8",)),
            chain("named", names=("a.example",), subnets=("10.1.0.0/16",)),
            chain("narrow", subnets=("10.1.2.0/24", "10.7.0.0/16")),
            chain("host", subnets=("10.1.2.3/32",)),
            chain("six", subnets=("fd00::/8",)),
        ],
        chain("default"),
    )
    assert connections.by_address
    assert found(connections, address, name) == expected


def test_nothing_takes_what_no_chain_is_for() -> None:
    connections = Connections([chain("named", names=("a.example",))])
    assert not connections.by_address
    assert found(connections, name="b.example") == ""
    assert found(connections, "10.0.0.1", "a.example") == "named"


def test_two_chains_for_the_same_are_none() -> None:
    with pytest.raises(ValueError, match=r"two chains ask for a\.example"):
        Connections([chain("1", names=("a.example", "b.example")), chain("2", names=("a.example",))])
    with pytest.raises(ValueError, match="any name"):
        Connections([chain("1", subnets=("10.0.0.0/8",)), chain("2", subnets=("10.0.0.0/8", "11.0.0.0/8"))])


def test_clusters_are_picked_by_weight() -> None:
    shared = FilterChain((Share("a", 1, 1), Share("b", 9, 10)))
    dice = random.Random(1)
    seen = Counter(shared.pick(dice) for _ in range(10_000))
    assert 900 < seen["a"] < 1100
    assert seen["a"] + seen["b"] == 10_000
