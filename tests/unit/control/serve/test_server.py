"""Where the control server may listen."""

import pytest

from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer, listen_address
from meshlib.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:15010", ("127.0.0.1", 15010)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:15010", ("::1", 15010)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert listen_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "15010", ":15010", "::1:15010", "host:", "host:x", "host:65536", "host:-1", "[]:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="listen address"):
        listen_address(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "control.example", "127.0.0.1", "localhost"])
def test_plaintext_is_served_only_when_told_to(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="there is no TLS without an authority"):
        ControlServer(Hub(), f"{host}:0")
    assert ControlServer(Hub(), f"{host}:0", allow_plaintext=True).address == f"{host}:0"
    assert "PLAINTEXT" in caplog.text
