"""What a refused listener is called, and why it is refused, in words."""

import logging
import os
import socket

import pytest

from meshlib.agent.admin import Admin, AdminUnreachable
from meshlib.agent.log import Told
from meshlib.agent.refusal import Teller, reason


class Dumped(Admin):
    """An admin interface that knows one document."""

    def __init__(self, document: str | None) -> None:
        self.known = document

    async def document(self, listener: str) -> str:
        if self.known is None:
            raise AdminUnreachable("gone")
        return self.known


@pytest.mark.parametrize(
    ("why", "said"),
    [
        (
            "cannot bind '0.0.0.0:80': Permission denied",
            "for 0.0.0.0:80 it needs to be root, or to listen elsewhere",
        ),
        ("cannot bind '[::]:80': Bad luck\n", "[::]:80 can't be bound: Bad luck"),
        (
            "cannot bind '1.2.3.4:80': Cannot assign requested address",
            "1.2.3.4 is no address of this machine",
        ),
        (
            "cannot bind '/run/x.sock': Address already in use",
            "cannot bind '/run/x.sock': Address already in use",
        ),
        ("Didn't find a registered implementation", "Didn't find a registered implementation"),
    ],
)
def test_reasons(why: str, said: str) -> None:
    assert reason(why) == said


def test_who_has_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = reason(f"cannot bind '127.0.0.1:{port}': Address already in use")
    assert said.startswith(f"127.0.0.1:{port} is in use by ")
    assert f"({os.getpid()})" in said
    assert reason(f"cannot bind '127.0.0.1:{port}': Address already in use").endswith("by another program")


async def test_it_has_the_same_name_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    admin = Dumped("Gateway a/edge a.yaml:5")
    teller = Teller(admin)
    await teller.tell(Told("::_80", "x"))
    admin.known = None
    for told in (Told("::_80", ""), Told("::_90", "y"), Told("a/inbound", "z"), Told("", "s")):
        await teller.tell(told)
    assert caplog.messages == [
        "port 80 of Gateway a/edge a.yaml:5 is not served: x",
        "port 80 of Gateway a/edge a.yaml:5 is served now",
        "port 90 of its Gateways is not served: y",
        "inbound of the workload a is not served: z",
        "Envoy refuses a secret: s; the last good one stays",
    ]
