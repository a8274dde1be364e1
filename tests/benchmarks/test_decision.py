"""What a decision costs: virtual host, rule, cluster; by the number of rules and of tables in the view.

    pytest tests/benchmarks/test_decision.py --benchmark-enable

Goal: below 5 microseconds at 100 rules, and flat in the number of tables.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from meshlib.core.request import RequestHead
from meshlib.core.route.forward import pick_cluster
from meshlib.core.route.rule import Forward
from meshlib.core.view import View
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

Values = dict[str, Any]


def mixed_rules(count: int) -> list[Values]:
    """Exact paths, prefixes and users in turn, a split for everybody else last."""
    kinds: tuple[Callable[[int], Values], ...] = (
        lambda n: {"path": f"/api/v1/products/{n}"},
        lambda n: {"prefix": f"/api/v{n}/reviews/"},
        lambda n: {"prefix": "/", "headers": [{"name": "end-user", "string_match": {"exact": f"user-{n}"}}]},
        lambda n: {
            "prefix": f"/team-{n}/",
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}, {"name": f"x-{n}"}],
        },
    )
    rules = [
        {"name": f"r{n}", "match": kinds[n % len(kinds)](n), "route": {"cluster": f"c{n}", "timeout": "2s"}}
        for n in range(count - 1)
    ]
    split = {"clusters": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]}
    return [*rules, {"name": "last", "match": {"prefix": "/"}, "route": {"weighted_clusters": split}}]


def view(tables: int, rules: int) -> View:
    """`tables` services; the one asked for has `rules` rules, the others one."""
    names = [f"service-{n}:9080" for n in range(tables)]
    made = {}
    for name in names:
        config = {
            "name": name,
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": [name, name.partition(":")[0]],
                    "routes": mixed_rules(rules if name == names[-1] else 1),
                }
            ],
        }
        made[name] = decode_routes(pb.from_dict(pb.RouteConfiguration, config))
    return View("1", tables=made)


FEW = 1_000
"""Tables if nothing is measured: to make thousands takes long."""
HEADERS = [
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"python-httpx/0.28"),
    (b"end-user", b"nobody"),
]


@pytest.mark.parametrize(("tables", "rules"), [(10, 1), (10, 10), (10, 100), (1_000, 100), (10_000, 100)])
def test_decision(benchmark: BenchmarkFixture, tables: int, rules: int) -> None:
    tables = tables if benchmark.enabled else min(tables, FEW)
    whole, dice = view(tables, rules), random.Random(1)
    name = f"service-{tables - 1}:9080"

    def decide() -> str:
        head = RequestHead("GET", "http", name, "/productpage?u=normal", HEADERS)
        route = whole.tables[head.authority].match(head, dice)
        assert route is not None
        assert isinstance(route.action, Forward)
        return pick_cluster(route.action, dice).name

    assert benchmark(decide) in ("v1", "v2")
