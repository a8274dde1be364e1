"""What the flow of a call acts with, for threads: it makes tries and waits for them."""

import threading
from collections.abc import Generator

from meshlib.core.actions import Action, Attempt, Event, Flow, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import network
from meshlib.dataplane.exchange import Request
from meshlib.dataplane.hedge_blocking import Tries
from meshlib.dataplane.telemetry.outbound import introduced
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.onebyone import one_by_one
from meshlib_grpc.sender import Sender
from meshlib_grpc.streamed import Streamed
from meshlib_grpc.unary import Unary, Wishes


class UnaryHands:
    """What a call with one request and one response acts with."""

    __slots__ = ("_message", "_request", "_sender", "_wishes", "last")

    def __init__(self, sender: Sender, request: Request, message: bytes, wishes: Wishes) -> None:
        self._sender = sender
        self._request = request
        self._message = message
        self._wishes = wishes
        self.last: Unary | None = None
        """What came last."""

    def send(self, attempt: Attempt) -> Unary | Failed:
        """One try."""
        sender = self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        made = sender.channels().unary(attempt, self._message, self._wishes)
        if not isinstance(made, Failed):
            self.last = made
        return made

    def several(self) -> Tries:
        """One after the other."""
        return one_by_one(self.send, self._sender.threads)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        (self._sender.mesh.network or network.SOCKETS).sleep(seconds)


class Gone(Exception):
    """The application cancelled it."""


class StreamHands:
    """What any other call acts with: its first try may begin before somebody waits."""

    def __init__(self, sender: Sender, request: Request, body: Message | Messages, wishes: Wishes) -> None:
        self._sender = sender
        self._request = request
        self._body = body
        self._wishes = wishes
        self._first: tuple[Attempt, Streamed | Failed] | None = None
        self.current: Streamed | None = None
        self.metadata = False
        """Whether the first metadata is all that is waited for."""
        self.cancelled = threading.Event()

    def begin(self, attempt: Attempt) -> Streamed | Failed:
        """One try, which nobody waits for yet."""
        sender = self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        made = sender.channels().begin(attempt, self._body, self._wishes)
        if isinstance(made, Streamed):
            self.current = made
        return made

    def begin_first(self, flow: Flow) -> Flow:
        """The first try, if nothing is before it; and what follows."""
        action = flow.send(None)
        while isinstance(action, Mirror):
            self.mirror(action)
            action = flow.send(None)
        if isinstance(action, Attempt):
            try:
                self._first = action, self.begin(action)
            except BaseException:
                flow.close()
                raise
        return _resumed(flow, action)

    def send(self, attempt: Attempt) -> Streamed | Failed:
        """One try. Gone."""
        first, self._first = self._first, None
        made = first[1] if first is not None else self.begin(attempt)
        if isinstance(made, Failed):
            return made
        settled = made.settle(metadata=self.metadata)
        if isinstance(settled, Failed) and not settled.connected and made.kept:
            made.close()
            again = self.begin(attempt)
            if isinstance(again, Failed):
                return again
            made, settled = again, again.settle(metadata=self.metadata)
        if self.cancelled.is_set():
            made.close()
            raise Gone
        if isinstance(settled, Failed):
            made.close()
        return settled

    def several(self) -> Tries:
        """One after the other."""
        return one_by_one(self.send, self._sender.threads)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        """Waits. Gone."""
        if self.cancelled.wait(seconds):
            raise Gone


def _resumed(flow: Flow, action: Action) -> Generator[Action, Event, None]:
    """The same flow, whose first action was taken from it already."""
    try:
        while True:
            event = yield action
            try:
                action = flow.send(event)
            except StopIteration:
                return
    finally:
        flow.close()
