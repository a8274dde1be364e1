"""Where the control service is: as given, from the environment, or the default."""

import pytest
import typer

from meshlib.cli.address import checked_address, control_address


def test_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_CONTROL", "127.0.0.1:1")
    assert control_address("localhost:2") == "localhost:2"
    assert control_address(None) == "127.0.0.1:1"
    monkeypatch.delenv("MESHLIB_CONTROL")
    assert control_address(None) == "127.0.0.1:15010"


@pytest.mark.parametrize(
    "address", ["", "nowhere", ":1", "a:b", "a:99999", "a:-1", "mesh/", "./mesh:1", "a:"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not ADDRESS:PORT"):
        checked_address(address, "--control")


@pytest.mark.parametrize("address", ["127.0.0.1:15010", "[::1]:0", "control.mesh:65535"])
def test_what_is_one(address: str) -> None:
    assert checked_address(address, "--control") == address


def test_a_folder_in_the_environment_is_named_as_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_CONTROL", "mesh/")
    with pytest.raises(typer.BadParameter) as caught:
        control_address(None)
    assert caught.value.param_hint == "MESHLIB_CONTROL"
    with pytest.raises(typer.BadParameter) as caught:
        control_address("mesh/")
    assert caught.value.param_hint == "--control"
