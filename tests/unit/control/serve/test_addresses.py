"""How addresses are counted and listened on."""

import socket

import pytest

from meshlib.control.serve.addresses import counted, listening
from meshlib.control.serve.credentials import server_names


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
    ],
)
def test_who_has_one_v6_address_has_many(host: str, expected: str) -> None:
    assert counted(host) == expected


def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    (first,) = listening("127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match="in use"):
            listening("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


def test_all_addresses_of_a_name_share_a_port() -> None:
    found = listening("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in found}) == 1
        assert found[0].family == socket.AF_INET
    finally:
        for each in found:
            each.close()


def test_the_names_of_a_server() -> None:
    found = server_names("10.1.2.3", ["control.example"])
    assert found[0] == "control.meshlib.internal"
    assert {"control.example", "10.1.2.3", "istiod.istio-system.svc", "localhost", "127.0.0.1"} <= set(found)
    assert "0.0.0.0" not in server_names("0.0.0.0")
    assert "control.example" in server_names("control.example")
