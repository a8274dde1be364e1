"""Filter chains with a TCP proxy as values, and what is refused because it would take too much."""

from ipaddress import ip_network
from typing import Any

import pytest

from meshlib.core.route.chain import Connections, FilterChain, Share
from meshlib.core.route.table import RouteTable
from meshlib.core.view import TargetListener
from meshlib.dataplane.decode import tcp
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.listeners import listener_value
from meshlib.dataplane.decode.tcp import decode_connections
from meshlib.xds import pb

TYPE = pb.type_url(pb.TcpProxy)
HTTP = pb.type_url(pb.HttpConnectionManager)


def proxy(**said: Any) -> dict[str, Any]:
    return {
        "name": "p",
        "typed_config": {"@type": TYPE, "stat_prefix": "s", **(said or {"cluster": "c"})},
    }


def chain(match: dict[str, Any] | None = None, **said: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"filters": [proxy(**said)]}
    return made | ({"filter_chain_match": match} if match else {})


def listener(*chains: dict[str, Any], **more: Any) -> Any:
    return pb.from_dict(pb.Listener, {"name": "db:1", "filter_chains": list(chains), **more})


def decoded(message: Any) -> Connections:
    found = decode_connections(message)
    assert found is not None
    return found


def test_everything_that_is_read() -> None:
    ranges = [{"address_prefix": "10.1.2.3", "prefix_len": 8}, {"address_prefix": "fd00::"}]
    metadata = {"filter_metadata": {"meshlib": {"document": "VirtualService a/b", "source": "m.yaml:3"}}}
    shares = {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}]}
    message = listener(
        chain(
            {"server_names": ["A.example", "*.B.example"], "prefix_ranges": ranges},
            weighted_clusters=shares,
            idle_timeout="9s",
            max_downstream_connection_duration="60s",
            max_connect_attempts=4,
            hash_policy=[{"source_ip": {}}],
        )
        | {"name": "n", "metadata": metadata},
        address={"socket_address": {"address": "10.0.0.1", "port_value": 1}},
        additional_addresses=[{"address": {"socket_address": {"address": "fd00::1", "port_value": 1}}}],
        default_filter_chain=chain(cluster="BlackHoleCluster"),
    )
    found = decoded(message)
    (one,) = found.chains
    assert one.shares == (Share("a", 1, 1), Share("b", 3, 4))
    assert one.names == ("a.example", "*.b.example")
    assert one.subnets == (ip_network("10.0.0.0/8"), ip_network("::/0"))
    assert (one.name, one.idle_timeout, one.max_duration, one.attempts) == ("n", 9.0, 60.0, 4)
    assert str(one.origin) == "VirtualService a/b m.yaml:3"
    assert found.addresses == ("10.0.0.1", "fd00::1")
    assert found.every[1].blocks
    assert found.every[1].shares == ()


def test_what_is_not_said_is_envoys_default() -> None:
    (one,) = decoded(listener(chain())).chains
    assert one == FilterChain((Share("c", 1, 1),))
    assert (one.idle_timeout, one.max_duration, one.attempts) == (3600.0, 0.0, 1)
    assert decoded(listener(chain(cluster="c", idle_timeout="0s"))).chains[0].idle_timeout == 0.0
    anywhere = {"socket_address": {"address": "0.0.0.0", "port_value": 1}}
    assert decoded(listener(chain(), address=anywhere)).addresses == ()


def test_a_chain_for_http_is_not_for_connections() -> None:
    http = {
        "filter_chain_match": {"application_protocols": ["http/1.1"]},
        "filters": [
            {
                "name": "h",
                "typed_config": {"@type": HTTP, "stat_prefix": "s", "rds": {"route_config_name": "r"}},
            }
        ],
    }
    value = listener_value(listener(http, chain()))
    assert isinstance(value, TargetListener)
    assert value.routes == "r"
    assert value.connections is not None
    assert [one.shares[0].cluster for one in value.connections.chains] == ["c"]
    assert decode_connections(listener(http)) is None
    assert decode_connections(listener(chain({"application_protocols": ["mysql"]}))) is None


def test_a_listener_of_connections_alone_has_no_routes() -> None:
    value = listener_value(listener(chain()))
    assert isinstance(value, TargetListener)
    assert isinstance(value.routes, RouteTable)
    assert value.routes.hosts == ()


MANY = [f"n{number}.example" for number in range(200)]


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        (chain({"destination_port": 1}), "filter_chain_match.destination_port"),
        (chain({"source_ports": [1]}), "filter_chain_match.source_ports"),
        (chain({"source_prefix_ranges": [{"address_prefix": "10.0.0.0"}]}), "source_prefix_ranges"),
        (chain({"transport_protocol": "tls"}), "filter_chain_match.transport_protocol"),
        (chain({"transport_protocol": "raw_buffer", "server_names": ["a"]}), "transport_protocol"),
        (chain({"server_names": ["a", ""]}), r"server_names\[1\]"),
        (chain({"server_names": ["*"]}), r"server_names\[0\]"),
        (chain({"server_names": ["a.*.b"]}), r"server_names\[0\]"),
        (chain({"server_names": ["*a.b"]}), r"server_names\[0\]"),
        (chain({"prefix_ranges": [{"address_prefix": "nowhere", "prefix_len": 8}]}), r"prefix_ranges\[0\]"),
        (chain({"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]}), r"prefix_ranges\[0\]"),
        (
            chain({"server_names": MANY, "prefix_ranges": [{"address_prefix": "10.0.0.0"}] * 200}),
            "200 names and 200 subnets",
        ),
        (chain(cluster=""), "cluster"),
        (chain(weighted_clusters={"clusters": [{"name": "a"}]}), r"clusters\[0\]"),
        (chain(weighted_clusters={"clusters": [{"weight": 1}]}), r"clusters\[0\]"),
        (chain(weighted_clusters={}), r"weighted_clusters\.clusters"),
        (
            chain(
                weighted_clusters={
                    "clusters": [{"name": "a", "weight": 2**32 - 1}, {"name": "b", "weight": 1}]
                }
            ),
            r"clusters\[1\]",
        ),
        (
            chain(weighted_clusters={"clusters": [{"name": "a", "weight": 1, "metadata_match": {}}]}),
            r"metadata_match",
        ),
        (chain(cluster="c", max_connect_attempts=0), "max_connect_attempts"),
        (chain(cluster="c", idle_timeout="-1s"), "idle_timeout"),
        (chain(cluster="c", tunneling_config={}), r"tunneling_config\.hostname"),
        (chain(cluster="c", tunneling_config={"hostname": "%REQ(x)%:1"}), r"tunneling_config\.hostname"),
        (chain(cluster="c", tunneling_config={"hostname": "a b:1"}), r"tunneling_config\.hostname"),
        (chain(cluster="c", tunneling_config={"hostname": "h:1\r\nx: y"}), r"tunneling_config\.hostname"),
        (
            chain(cluster="c", tunneling_config={"hostname": "h:1", "propagate_response_headers": True}),
            r"tunneling_config\.propagate_response_headers",
        ),
        (chain(cluster="c", hash_policy=[{"filter_state": {"key": "k"}}]), r"hash_policy\[0\]"),
        (chain(cluster="c", metadata_match={}), "metadata_match"),
        ({"filters": [proxy(), proxy()]}, "filters"),
        ({"filters": [{"name": "x"}, proxy()]}, "filters"),
    ],
)
def test_what_is_not_done_here_is_refused(bad: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused, match=path):
        decode_connections(listener(chain({"server_names": ["fine.example"]}), bad))
    with pytest.raises(Refused, match="default_filter_chain"):
        decode_connections(listener(default_filter_chain=bad))


def test_broken_bytes_and_too_many_chains_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = listener(chain())
    message.filter_chains[0].filters[0].typed_config.value = b"\xff"
    with pytest.raises(Refused, match=r"filter_chains\[0\]\.filters\[0\]\.typed_config: can't be decoded"):
        decode_connections(message)
    monkeypatch.setattr(tcp, "MAX_CHAINS", 1)
    with pytest.raises(Refused, match="more than 1"):
        decode_connections(listener(chain({"server_names": ["a"]}), chain()))


def test_two_chains_for_the_same_are_refused_as_envoy_does() -> None:
    with pytest.raises(Refused, match="filter_chains: two chains ask for any name"):
        decode_connections(listener(chain(), chain()))
