"""Envoy's CircuitBreakers, and what a cluster says of its connections."""

from typing import Any

import pytest

from meshlib.core.balance.cluster import Keepalive, Limits, Upstream
from meshlib.core.budget import RetryBudget
from meshlib.dataplane.decode.breaker import decode_limits
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def limits(*thresholds: dict[str, Any]) -> Limits:
    return decode_limits(pb.from_dict(pb.CircuitBreakers, {"thresholds": list(thresholds)}))


def test_envoys_own_numbers() -> None:
    assert (
        limits()
        == limits({})
        == limits({"priority": "HIGH", "max_retries": 9})
        == Limits(1024, 1024, 1024, 3)
    )


def test_every_number_of_the_default_priority() -> None:
    numbers = {"max_connections": 1, "max_pending_requests": 2, "max_requests": 3, "max_retries": 4}
    assert limits({"priority": "HIGH"}, numbers) == Limits(1, 2, 3, 4)
    assert limits(dict.fromkeys(numbers, 0)) == Limits(1, 0, 0, 0)


def test_retry_budgets() -> None:
    assert limits({"retry_budget": {}}).budget == RetryBudget(20.0, 3)
    said = {"budget_percent": {"value": 0}, "min_retry_concurrency": 0}
    assert limits({"retry_budget": said}).budget == RetryBudget(0.0, 0)
    assert limits({"retry_budget": {"budget_interval": "1.5s"}}).budget == RetryBudget(20.0, 3, 1.5)
    assert limits({"retry_budget": {"budget_interval": "0.0015s"}}).budget == RetryBudget(20.0, 3, 0.001)
    assert limits({"retry_budget": {"budget_interval": "0.0009s"}}).budget == RetryBudget(20.0, 3)


def test_a_budgets_interval_is_no_less_than_nothing() -> None:
    made = pb.CircuitBreakers()
    made.thresholds.add().retry_budget.budget_interval.seconds = -1
    with pytest.raises(Refused) as refused:
        decode_limits(made)
    assert refused.value.path == "thresholds[0].retry_budget.budget_interval"


@pytest.mark.parametrize("value", [-1.0, 100.5, float("nan")])
@pytest.mark.parametrize("priority", ["DEFAULT", "HIGH"])
def test_a_budget_is_a_percentage(value: float, priority: str) -> None:
    made = pb.CircuitBreakers()
    made.thresholds.add(priority=priority).retry_budget.budget_percent.value = value
    with pytest.raises(Refused) as refused:
        decode_limits(made)
    assert refused.value.path == "thresholds[0].retry_budget.budget_percent.value"


def upstream(
    options: dict[str, Any] | None = None, keepalive: dict[str, Any] | None = None, **more: Any
) -> Upstream:
    made = pb.from_dict(pb.Cluster, {"name": "c", "type": "EDS", **more})
    if options is not None:
        common = {"common_http_protocol_options": options}
        packed = pb.pack(pb.from_dict(pb.HttpProtocolOptions, common))
        made.typed_extension_protocol_options[OPTIONS].CopyFrom(packed)
    if keepalive is not None:
        said = {"tcp_keepalive": keepalive}
        made.upstream_connection_options.CopyFrom(
            pb.from_dict(pb.message("envoy.config.cluster.v3.UpstreamConnectionOptions"), said)
        )
    return decode_cluster(made).upstream


def test_how_long_a_connection_lives() -> None:
    assert upstream().max_connection_duration == float("inf")
    assert upstream({}).max_connection_duration == float("inf")
    assert upstream({"max_connection_duration": "0s"}).max_connection_duration == float("inf")
    assert upstream({"max_connection_duration": "1.5s"}).max_connection_duration == 1.5
    with pytest.raises(Refused, match="max_connection_duration"):
        upstream({"max_connection_duration": "-1s"})


def test_keep_alive() -> None:
    assert upstream().keepalive is None
    assert upstream(keepalive={}).keepalive == Keepalive()
    numbers = {"keepalive_probes": 1, "keepalive_time": 2, "keepalive_interval": 3}
    assert upstream(keepalive=numbers).keepalive == Keepalive(1, 2, 3)


@pytest.mark.parametrize("name", ["keepalive_probes", "keepalive_time", "keepalive_interval"])
@pytest.mark.parametrize("value", [0, 2**31])
def test_numbers_that_no_socket_takes(name: str, value: int) -> None:
    with pytest.raises(Refused) as refused:
        upstream(keepalive={name: value})
    assert refused.value.path == f"upstream_connection_options.tcp_keepalive.{name}"
