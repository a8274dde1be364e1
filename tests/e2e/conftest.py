"""Commands and applications of these tests speak plaintext, unless a test is about TLS."""

import pytest


@pytest.fixture(autouse=True)
def plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever starts `meshlib control --allow-plaintext` must tell its clients."""
    monkeypatch.setenv("MESHLIB_ALLOW_PLAINTEXT", "true")
