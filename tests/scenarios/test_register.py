"""A server joins, drains, leaves, and comes back to a control service that was restarted."""

import threading

import pytest
from support.commands import wait_until
from support.served import Served

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.dataplane.register import Registration


def test_joins_drains_and_leaves() -> None:
    with (
        Served("5.1") as served,
        meshlib.register(
            control=served.address,
            allow_plaintext=True,
            service_account="reviews",
            labels={"app": "reviews"},
            ports={"http": 9080, "admin": 9081},
            drain=0.1,
        ) as joined,
    ):
        assert joined.wait(60)
        assert joined.address == "127.0.0.1"
        assert "joined" in repr(joined)
    first, draining, left = served.registrations
    assert (first[0].service_account, first[0].label_map, first[0].port_map) == (
        "reviews",
        {"app": "reviews"},
        {"admin": 9081, "http": 9080},
    )
    assert (first[0].address, first[0].draining, draining[0].draining) == ("127.0.0.1", False, True)
    assert left == ()
    assert not [t for t in threading.enumerate() if t.name == "meshlib-register"]


def test_returns_after_a_restart_of_the_control_service() -> None:
    with Served("5.1") as served:
        joined = Registration(
            bootstrap({}, allow_plaintext=True, control=served.address, ports={"http": 9080}, drain=0)
        )
        assert joined.wait(60)
    with joined, Served("6.1", port=served.port) as again:
        wait_until(lambda: any(again.registrations), 60, "the registration to return")
        assert joined.wait(60)
    assert next((r[0].port_map, r[0].draining) for r in again.registrations if r) == ({"http": 9080}, False)


def test_what_it_needs() -> None:
    with pytest.raises(meshlib.ConfigError, match="ports: found nothing"):
        Registration(bootstrap({}, allow_plaintext=True, control="127.0.0.1:1"))
