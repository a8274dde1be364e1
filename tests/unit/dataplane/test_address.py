"""The address of this process, found without sending anything."""

import socket

import pytest

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.address import likely_address, own_address
from meshlib.errors import ConfigError


def unknown(*_: object, **__: object) -> None:
    raise OSError("Name or service not known")


def test_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_address("127.0.0.1:15010") == "127.0.0.1"
    assert own_address("[::1]:15010") == "::1"
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"^address: none is given, and control:1 says nothing of ours"):
        own_address("control:1")


def test_likely_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert likely_address(bootstrap({}, control="127.0.0.1:15010")) == "127.0.0.1"
    assert likely_address(bootstrap({}, control="[::1]:15010")) == "::1"
    assert likely_address(bootstrap({}, control="control:1", address="10.1.2.3")) == "10.1.2.3"
    asked = []

    def look_up(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert likely_address(bootstrap({}, control="control:1")) == ""
    assert asked == ["203.0.113.1"]
