"""Who is registered, by time and by what servers say."""

from dataclasses import replace
from typing import Any

import pytest

from meshlib.control.registration import Place, Registration
from meshlib.control.serve.registration import (
    Joining,
    Registrar,
    RegistrationError,
    TooMany,
    identity,
    specifier,
)
from meshlib.xds import pb
from meshlib.xds.node import Locality


def node(name: str = "r", **metadata: Any) -> Any:
    made = pb.Node(id=name)
    made.metadata.update({"PORTS": {"http": 9080}} | metadata)
    return made


def one(name: str = "a", draining: bool = False) -> Registration:
    return Registration(name, "shop", "x", (), "10.0.0.1", (("http", 80),), draining=draining)


@pytest.fixture
def changes() -> list[tuple[Registration, ...]]:
    return []


@pytest.fixture
def registrar(changes: list[tuple[Registration, ...]]) -> Registrar:
    return Registrar(changes.append, grace=2.0)


def test_a_stream_that_ended_is_remembered_for_the_grace(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.reported(1, one(), 1.0)
    registrar.ended(1, 5.0)
    assert registrar.next_expiry == 7.0
    registrar.expire(6.9)
    assert changes == [(one(),)]
    registrar.expire(7.0)
    assert changes == [(one(),), ()]
    assert registrar.next_expiry is None


def test_who_was_cut_off_has_longer(registrar: Registrar, changes: list[tuple[Registration, ...]]) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.ended(1, 5.0, 10.0)
    assert registrar.next_expiry == 15.0
    registrar.reported(2, one(), 14.0)
    registrar.ended(2, 15.0)
    registrar.expire(16.9)
    assert changes == [(one(),)]
    registrar.expire(17.0)
    assert changes[-1] == ()


def test_who_comes_back_within_the_grace_never_left(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.ended(1, 1.0)
    registrar.reported(2, one(), 2.0)
    registrar.expire(100.0)
    assert changes == [(one(),)]


def test_a_new_stream_before_the_old_one_is_known_to_be_dead(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.reported(2, one(), 1.0)
    registrar.ended(1, 30.0)
    assert registrar.next_expiry is None
    assert changes == [(one(),)]


def test_nobody_takes_anothers_place_whatever_id_it_says(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    others = [
        replace(one(), namespace="bank"),
        replace(one(), service_account="y"),
        replace(one(), node="vm1", place=Place("a")),
    ]
    registrar.reported(1, one(), 0.0)
    for stream, other in enumerate(others, 2):
        registrar.reported(stream, other, 1.0)
    assert set(changes[-1]) == {one(), *others}
    for stream in (2, 3, 4):
        registrar.reported(stream, None, 2.0)
    assert changes[-1] == (one(),)


def test_of_one_workload_of_a_node_the_newest_counts(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    old = replace(one("z"), node="vm1", place=Place("web"))
    new = replace(old, id="a", draining=True)
    another = replace(old, id="b", node="vm2")
    for stream, each in enumerate((old, another), 1):
        registrar.reported(stream, each, 0.0)
    registrar.ended(1, 1.0)
    assert changes[-1] == (another, old)
    registrar.reported(3, new, 1.5)  # an agent that starts anew, in the grace
    assert changes[-1] == (new, another)
    registrar.reported(3, replace(new, draining=False), 1.6)
    assert changes[-1] == (replace(new, draining=False), another)
    registrar.ended(3, 2.0)
    registrar.expire(4.0)
    assert changes[-1] == (another,)


def test_one_that_still_reports_is_back_when_the_newer_one_leaves(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    old = replace(one("z"), node="vm1", place=Place("web"))
    new = replace(old, id="a")
    registrar.reported(1, old, 0.0)
    registrar.reported(2, new, 1.0)
    registrar.reported(1, old, 2.0)
    assert changes[-1] == (new,)
    registrar.reported(2, None, 3.0)
    assert changes[-1] == (old,)


def test_those_of_one_caller_are_bounded(
    registrar: Registrar, changes: list[tuple[Registration, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshlib.control.serve.registration.MAX_REGISTRATIONS", 2)
    for stream, name in enumerate("ab"):
        registrar.reported(stream, one(name), 0.0, "x at 10.0.0.1")
        registrar.reported(stream, one(name), 0.0, "x at 10.0.0.1")
    with pytest.raises(TooMany, match=r"there are 2 registrations of x at 10\.0\.0\.1; no more are taken"):
        registrar.reported(7, one("c"), 0.0, "x at 10.0.0.1")
    assert changes[-1] == (one("a"), one("b"))
    registrar.reported(7, one("c"), 0.0, "x at 10.0.0.2")
    # One whose stream has ended counts for its grace; who comes back is no more.
    registrar.ended(0, 1.0)
    registrar.reported(8, one("a"), 1.5, "x at 10.0.0.1")
    registrar.ended(8, 2.0)
    registrar.expire(4.0)
    registrar.reported(9, one("d"), 4.0, "x at 10.0.0.1")
    assert changes[-1] == (one("b"), one("c"), one("d"))


def test_a_node_that_starts_anew_is_not_in_its_own_way(
    registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshlib.control.serve.registration.MAX_REGISTRATIONS", 1)
    old = replace(one("z"), node="vm1", place=Place("web"))
    registrar.reported(1, old, 0.0, "vm1")
    registrar.ended(1, 1.0)
    registrar.reported(2, replace(old, id="a"), 1.5, "vm1")
    assert registrar.registrations == (replace(old, id="a"),)


def test_draining_is_told_at_once_and_the_end_of_its_stream_removes(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.reported(1, one(draining=True), 1.0)
    registrar.ended(1, 2.0)
    assert changes == [(one(),), (one(draining=True),), ()]


def test_unhealthy_is_out_and_may_come_back(
    registrar: Registrar, changes: list[tuple[Registration, ...]]
) -> None:
    registrar.reported(1, one(), 0.0)
    registrar.reported(1, None, 1.0)
    registrar.reported(1, one(), 2.0)
    assert changes == [(one(),), (), (one(),)]


def health(*reports: tuple[str, str]) -> Any:
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    cluster = message.endpoint_health_response.cluster_endpoints_health.add(cluster_name="x")
    group = cluster.locality_endpoints_health.add()
    for state, address in reports:
        report = group.endpoints_health.add(health_status=state)
        report.endpoint.address.socket_address.address = address
    return message


def joined(**metadata: Any) -> Joining:
    found = Joining()
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    message.health_check_request.node.CopyFrom(node(**metadata))
    assert found.received(message) is None
    return found


def test_two_processes_of_one_node_id_are_two_registrations() -> None:
    first = joined(PORTS={"http": 1}).received(health(("HEALTHY", "10.0.0.1")))
    second = joined(PORTS={"http": 2}).received(health(("HEALTHY", "10.0.0.1")))
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("r@10.0.0.1/http:1", "r@10.0.0.1/http:2")


def test_everything_that_a_node_says() -> None:
    found = identity(
        node(
            NAMESPACE="shop",
            SERVICE_ACCOUNT="ratings",
            LABELS={"version": "v1", "app": "ratings"},
            PORTS={"http": 9080, "admin": 1},
            LOCALITY="r1/z1",
            WEIGHT=3,
        )
    )
    assert found == Registration(
        "r",
        "shop",
        "ratings",
        (("app", "ratings"), ("version", "v1")),
        "",
        (("admin", 1), ("http", 9080)),
        Locality("r1", "z1"),
        3,
    )
    assert (identity(node()).namespace, identity(node()).service_account) == ("default", "default")


def test_a_workload_behind_a_node() -> None:
    found = identity(node("workload~a", NODE_NAME="vm1"))
    assert (found.node, found.place) == ("vm1", Place("workload~a"))
    place = {"UID": "a", "NETNS": "/run/netns/a", "APP_PORTS": {"9080": 19080}, "PROXY_PORT": 0}
    found = identity(node(NODE_NAME="vm1", **place))
    assert found.place == Place("a", "/run/netns/a", ((9080, 19080),), 0)
    assert (found.place.app_port(9080), found.place.app_port(1)) == (19080, 1)
    assert (identity(node()).node, identity(node()).place) == ("", None)
    with pytest.raises(RegistrationError, match="metadata UID is 'a b'"):
        identity(node("a b", NODE_NAME="vm1"))


def test_a_port_of_a_node_must_not_lead_to_itself() -> None:
    def at(address: str, **place: Any) -> Registration | None:
        return joined(NODE_NAME="vm1", **place).received(health(("HEALTHY", address)))

    for good in (at("127.0.0.1", APP_PORTS={"9080": 1}), at("10.0.0.1"), at("127.0.0.1", NETNS="/n")):
        assert good is not None
    with pytest.raises(RegistrationError, match=r"port 9080 at 127\.0\.0\.1 is the application's own"):
        at("127.0.0.1")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["HEALTHY"], False),
        (["UNKNOWN"], False),
        (["DEGRADED"], False),
        (["HEALTHY", "DRAINING"], True),
        (["UNHEALTHY"], None),
        (["HEALTHY", "TIMEOUT"], None),
        ([], None),
    ],
)
def test_what_a_report_amounts_to(states: list[str], expected: bool | None) -> None:
    found = joined().received(health(*((state, "::1") for state in states)))
    assert (found.draining if found else None) == expected
    assert found is None or found.address == "::1"


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"NAMESPACE": 7}, "metadata NAMESPACE is not a text"),
        ({"NAMESPACE": "a b"}, "metadata NAMESPACE is 'a b'; up to 63 lower case letters"),
        ({"NAMESPACE": "a.b"}, "metadata NAMESPACE is 'a.b'; up to 63 lower case letters"),
        ({"SERVICE_ACCOUNT": "A/b"}, "metadata SERVICE_ACCOUNT is 'A/b'; lower case letters, digits"),
        ({"SERVICE_ACCOUNT": "x" * 300}, "at most 253 printable characters"),
        ({"LABELS": ["app"]}, "metadata LABELS is not an object"),
        ({"LABELS": {"app": 1}}, "metadata LABELS.app is not a text"),
        ({"LABELS": {"app": "a\nb"}}, "printable"),
        ({"LABELS": {"app": "a b"}}, "LABELS: not the value of a label, found 'a b'; allowed: up to 63"),
        ({"LABELS": {"a b": "x"}}, "LABELS: not the name of a label, found 'a b'; allowed: [DNS name/]up"),
        ({"LABELS": {"app": "x" * 64}}, "LABELS: not the value of a label"),
        ({"PORTS": {"a b": 1}}, "metadata PORTS has 'a b'; up to 63 letters, digits and - are allowed"),
        ({"PORTS": {"": 1}}, "metadata PORTS has ''"),
        ({"LOCALITY": "a//b"}, "locality 'a//b' is not region, region/zone or region/zone/subzone"),
        ({"LOCALITY": "a/*"}, "locality 'a/*' is not"),
        ({"LOCALITY": "a/b/c/d"}, "locality 'a/b/c/d' is not"),
        ({"LABELS": {str(n): "" for n in range(3000)}}, "metadata LABELS has 3000 fields; at most 256"),
        ({"PORTS": {}}, "metadata PORTS is empty"),
        ({"PORTS": {str(n): 1 for n in range(1000)}}, "metadata PORTS has 1000 fields; at most 64"),
        ({"PORTS": {"http": 0}}, "metadata PORTS.http is 0; a whole number from 1 to 65535"),
        ({"PORTS": {"http": 80.5}}, "metadata PORTS.http is 80.5"),
        ({"PORTS": {"http": float("nan")}}, "metadata PORTS.http is nan"),
        ({"PORTS": {"http": float("inf")}}, "metadata PORTS.http is inf"),
        ({"PORTS": {"http": True}}, "metadata PORTS.http is not a number"),
        ({"WEIGHT": -1}, "metadata WEIGHT is -1"),
        ({"LOCALITY": {"region": "r"}}, "metadata LOCALITY is not a text"),
        ({"NODE_NAME": "a b"}, "metadata NODE_NAME is 'a b'; lower case letters"),
        ({"NODE_NAME": 1}, "metadata NODE_NAME is not a text"),
        ({"NETNS": "/run/netns/a"}, "metadata NETNS without NODE_NAME"),
        ({"NODE_NAME": "n", "UID": "a/b"}, "metadata UID is 'a/b'; letters, digits"),
        ({"NODE_NAME": "n", "UID": ""}, "metadata UID is ''"),
        ({"NODE_NAME": "n", "NETNS": "run/netns"}, "metadata NETNS is 'run/netns'; the absolute path"),
        ({"NODE_NAME": "n", "NETNS": "/run/../a"}, "metadata NETNS is '/run/../a'"),
        ({"NODE_NAME": "n", "APP_PORTS": {"81": 1}}, "metadata APP_PORTS has '81', which is not one of"),
        ({"NODE_NAME": "n", "APP_PORTS": {"9080": 0}}, "metadata APP_PORTS.9080 is 0; a whole number"),
        ({"NODE_NAME": "n", "APP_PORTS": 1}, "metadata APP_PORTS is not an object"),
        ({"NODE_NAME": "n", "PROXY_PORT": -1}, "PROXY_PORT is -1; a whole number from 0 to 65535"),
        ({"NODE_NAME": "n", "PROXY_PORT": 1, "NETNS": "/n"}, "metadata PROXY_PORT with NETNS"),
    ],
)
def test_metadata_that_is_no_good(metadata: dict[str, Any], text: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        identity(node(**metadata))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (["ratings.local"], "address 'ratings.local' is not an IP address; an IP address is allowed"),
        ([""], "address '' is not an IP address"),
        (["fe80::1%eth0"], "address 'fe80::1%eth0' is an IP address with a zone"),
        (["0.0.0.0"], "address '0.0.0.0' is not the address of a server"),
        (["224.0.0.1"], "is not the address of a server"),
        (["10.0.0.1", "10.0.0.2"], "endpoints at several addresses: 10.0.0.1, 10.0.0.2"),
        (["10.0.0.1"] * 65, "65 endpoints; at most 64"),
    ],
)
def test_addresses_that_are_no_good(addresses: list[str], text: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        joined().received(health(*(("HEALTHY", address) for address in addresses)))
    assert text in str(caught.value)


def test_endpoints_of_nobody_and_a_node_without_an_id() -> None:
    with pytest.raises(RegistrationError, match="before the health check request"):
        Joining().received(health(("HEALTHY", "10.0.0.1")))
    with pytest.raises(RegistrationError, match="has 0 characters"):
        identity(node(""))
    with pytest.raises(RegistrationError, match="PORTS is missing"):
        identity(pb.Node(id="x"))


def test_the_reply_asks_for_a_report_every_ten_seconds() -> None:
    assert pb.seconds(specifier().interval) == 10.0


def test_the_locality_of_the_node_itself() -> None:
    made = node()
    made.locality.region, made.locality.zone = "r1", "z1"
    assert identity(made).locality == Locality("r1", "z1")
    made.locality.zone = "z/1"
    with pytest.raises(RegistrationError, match="has a / in one of its parts"):
        identity(made)
    made.locality.region, made.locality.zone = "", "z1"
    with pytest.raises(RegistrationError, match="locality '/z1' is not region"):
        identity(made)
