"""What happens to a call while nobody waits for it. Nothing of that keeps a call that is dropped."""

import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from meshlib.core.actions import Flow
from meshlib.dataplane.drive import Answer, Body
from meshlib.dataplane.exchange import Request
from meshlib_grpc.hands import StreamHands
from meshlib_grpc.sender import Sender

Came = Answer | BaseException
"""What a flow came to."""


class Hearing(Protocol):
    """A call that is told of ends."""

    def hear(self) -> None:
        """A try of it has ended."""


class Decided(Protocol):
    """A call whose flow runs on a thread of its own."""

    def decided(self, came: Came, found: threading.Event) -> None:
        """That is what it came to; `found` is to be set."""


def told(where: "weakref.ref[Hearing]") -> Callable[[], None]:
    """What tells a call, if it is there."""

    def tell() -> None:
        call = where()
        if call is not None:
            call.hear()

    return tell


def decide(
    where: "weakref.ref[Decided]",
    found: threading.Event,
    sender: Sender,
    request: Request,
    flow: Flow,
    hands: StreamHands,
) -> None:
    """Runs the flow of a call to its answer, and tells the call, if it is still there."""
    came = came_of(sender, request, flow, hands)
    call = where()
    if call is None:
        drop(came)
    else:
        call.decided(came, found)


def came_of(sender: Sender, request: Request, flow: Flow, hands: StreamHands) -> Came:
    """Runs a flow; an error is given, not raised."""
    try:
        return sender.run(request, flow, hands)
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        return error


def drop(came: Came) -> None:
    """Nobody wants it."""
    if isinstance(came, Answer) and isinstance(came.body, Body):
        came.body.close()
