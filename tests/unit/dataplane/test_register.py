"""What a server says of itself, when; a stream that nobody runs."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.register import Registration
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.client_stream import ProtocolError
from meshlib.xds.names import TLS_MODE_LABEL

HEALTHY, DRAINING = 1, 3


class Kept:
    """Keeps what was called; the test runs the talk."""

    def __init__(self, name: str, address: str, path: str, talk: Registration) -> None:
        self.made = (name, address, path)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def wake(self) -> None:
        self.calls.append("wake")

    def close(self) -> None:
        self.calls.append("close")

    def after_fork_in_child(self) -> None:
        self.calls.append("child")


@pytest.fixture
def made() -> Iterator[tuple[Registration, Kept]]:
    kept: list[Kept] = []

    def keep(*arguments: Any) -> Kept:
        kept.append(Kept(*arguments))
        return kept[0]

    settings = bootstrap(
        {},
        control="127.0.0.1:15010",
        namespace="books",
        service_account="reviews",
        labels={"app": "reviews"},
        locality="eu/west",
        weight=3,
        ports={"http": 9080, "admin": 9081},
        drain=0,
    )
    registration = Registration(settings, keep)
    yield registration, kept[0]
    registration.close()


def heard(registration: Registration) -> list[Any]:
    read = pb.HealthCheckRequestOrEndpointHealthResponse.FromString
    return [read(message) for message in registration.ask()]


def reported(message: Any) -> list[tuple[str, int, int]]:
    found = []
    for one in message.endpoint_health_response.endpoints_health:
        socket = one.endpoint.address.socket_address
        found.append((socket.address, socket.port_value, one.health_status))
    return found


def specifier(seconds: float) -> bytes:
    message: bytes = pb.HealthCheckSpecifier(interval=pb.duration(seconds)).SerializeToString()
    return message


def test_it_starts_at_once_and_says_who_it_is(made: tuple[Registration, Kept]) -> None:
    registration, kept = made
    assert kept.made == ("meshlib-register", "127.0.0.1:15010", pb.HDS)
    assert kept.calls == ["start"]
    registration.opened()
    first, second = heard(registration)
    node = first.health_check_request.node
    metadata = pb.to_dict(node.metadata)
    assert {
        name: metadata[name] for name in ("NAMESPACE", "SERVICE_ACCOUNT", "LABELS", "PORTS", "LOCALITY")
    } == {
        "NAMESPACE": "books",
        "SERVICE_ACCOUNT": "reviews",
        "LABELS": {"app": "reviews"},
        "PORTS": {"http": 9080, "admin": 9081},
        "LOCALITY": "eu/west",
    }
    assert metadata["WEIGHT"] == 3
    assert reported(second) == [("127.0.0.1", 9081, HEALTHY), ("127.0.0.1", 9080, HEALTHY)]


def test_it_joins_reports_and_leaves(made: tuple[Registration, Kept]) -> None:
    registration, kept = made
    assert repr(registration) == "<Registration reviews at 127.0.0.1 admin=9081, http=9080: joining>"
    registration.opened()
    heard(registration)
    assert not registration.wait(0)
    registration.take(specifier(10))
    assert registration.wait(0)
    assert registration.pause() == 10.0
    assert "joined" in repr(registration)
    (again,) = heard(registration)
    assert {state for _, _, state in reported(again)} == {HEALTHY}
    registration.drain()
    assert "draining" in repr(registration)
    (last,) = heard(registration)
    assert {state for _, _, state in reported(last)} == {DRAINING}
    registration.drain()
    registration.close()
    registration.close()
    assert kept.calls == ["start", "wake", "close"]
    assert "closed" in repr(registration)
    assert not registration.joined


def test_who_does_not_serve_yet_is_known_and_not_used() -> None:
    kept: list[Kept] = []

    def keep(*arguments: Any) -> Kept:
        kept.append(Kept(*arguments))
        return kept[0]

    settings = bootstrap({}, control="127.0.0.1:15010", ports={"http": 9080}, drain=3600)
    registration = Registration(settings, keep, serving=False)
    registration.opened()
    assert reported(heard(registration)[1]) == [("127.0.0.1", 9080, DRAINING)]
    registration.take(specifier(10))
    registration.serve()
    registration.serve()
    assert kept[0].calls == ["start", "wake"]
    assert reported(heard(registration)[0]) == [("127.0.0.1", 9080, HEALTHY)]
    registration.drain(0)
    registration.serve()
    assert reported(heard(registration)[0]) == [("127.0.0.1", 9080, DRAINING)]
    registration.close()
    # Nobody has to hear that it leaves whom nobody was sent to.
    never = Registration(settings, Kept, serving=False)
    never.take(specifier(10))
    never.drain()
    never.close()


def test_who_is_told_once_more_asks_for_the_roots(made: tuple[Registration, Kept]) -> None:
    registration, _ = made
    looks: list[bool] = []
    registration._certs = SimpleNamespace(look=lambda: looks.append(True), leave=lambda: None)  # type: ignore[assignment]
    registration.opened()
    registration.take(specifier(10))
    assert looks == []
    registration.take(specifier(10))
    assert looks == [True]
    registration.ended("")
    registration.opened()
    registration.take(specifier(10))
    assert looks == [True]


def test_a_new_stream_says_it_all_again(made: tuple[Registration, Kept]) -> None:
    registration, _ = made
    registration.opened()
    node = heard(registration)[0].health_check_request.node
    registration.take(specifier(10))
    assert 0 < registration.ended("UNAVAILABLE: gone") <= 1.0
    assert not registration.joined
    registration.opened()
    first, second = heard(registration)
    assert first.health_check_request.node == node
    assert len(reported(second)) == 2


@pytest.mark.parametrize(("asked", "pause"), [(0.0, 1.0), (1.5, 1.5), (3600.0, 30.0)])
def test_the_interval_has_bounds(made: tuple[Registration, Kept], asked: float, pause: float) -> None:
    made[0].take(specifier(asked))
    assert made[0].pause() == pause


def test_nonsense(made: tuple[Registration, Kept]) -> None:
    with pytest.raises(ProtocolError, match="a message that can't be decoded"):
        made[0].take(b"\xff")
    assert not made[0].joined


def test_a_lost_stream_is_told_once(
    made: tuple[Registration, Kept], caplog: pytest.LogCaptureFixture
) -> None:
    registration, _ = made
    caplog.set_level(logging.INFO)
    registration.ended("UNAVAILABLE: Connection refused")
    registration.ended("UNAVAILABLE: Connection refused")
    registration.take(specifier(10))
    registration.ended("")
    registration.ended("UNAVAILABLE: Connection refused")
    assert [record.message for record in caplog.records] == [
        "not registered at 127.0.0.1:15010: UNAVAILABLE: Connection refused; trying again",
        "not registered at 127.0.0.1:15010: the control service ended the stream; trying again",
    ]


def test_a_child_leaves_the_registration_to_its_parent(made: tuple[Registration, Kept]) -> None:
    registration, kept = made
    registration.before_fork()
    registration.after_fork_in_parent()
    registration.take(specifier(10))
    assert registration.joined
    registration.before_fork()
    registration.after_fork_in_child()
    assert "closed" in repr(registration)
    registration.drain()
    registration.close()
    assert kept.calls == ["start", "child"]


def test_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="ports: found nothing"):
        Registration(bootstrap({}))


@pytest.mark.parametrize(
    ("labels", "mutual_tls", "said"),
    [
        ({}, False, {}),
        ({}, True, {TLS_MODE_LABEL: "istio"}),
        ({TLS_MODE_LABEL: "disabled"}, True, {TLS_MODE_LABEL: "disabled"}),
        ({TLS_MODE_LABEL: "istio"}, False, {TLS_MODE_LABEL: "istio"}),
    ],
)
def test_it_says_that_it_takes_mutual_tls_only_if_asked(
    labels: dict[str, str], mutual_tls: bool, said: dict[str, str]
) -> None:
    settings = bootstrap({}, labels=labels, ports={"http": 1}, address="127.0.0.1", drain=0)
    with Registration(settings, Kept, mutual_tls=mutual_tls) as registration:
        node = heard(registration)[0].health_check_request.node
        assert dict(node.metadata.fields["LABELS"].struct_value.items()) == said
