"""What the flow of a call acts with, for threads: it makes tries and waits for them."""

import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future, InvalidStateError

from meshlib.core.actions import Action, Attempt, Event, Flow, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import network
from meshlib.dataplane.exchange import Request
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.telemetry.outbound import introduced
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.errors import Status
from meshlib_grpc.hedged import Hedged
from meshlib_grpc.outcome import CLOSED
from meshlib_grpc.pool import LOOKS
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
        """One try. Status: the channel was closed."""
        made = self._make(attempt)
        if not isinstance(made, Failed):
            self.last = made
        return made

    def _make(self, attempt: Attempt, cut: Cut | None = None) -> Unary | Failed:
        sender = self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        made = sender.channels().unary(attempt, self._message, self._wishes, cut)
        if (isinstance(made, Failed) or made.call is None) and sender.closed:
            raise Status(CLOSED.code, details=CLOSED.details)
        return made

    def _came(self, response: Unary) -> None:
        self.last = response

    def several(self) -> Hedged:
        """Several at a time."""
        return Hedged(self._make, self._sender.threads, self._came)

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
        self._first: Streamed | Failed | None = None
        self._later: Future[Streamed | Failed] | None = None
        """The first try, where it had to wait."""
        self._flying: set[Streamed] = set()
        """What was begun and is not over."""
        self.current: Streamed | None = None
        """What was answered."""
        self.metadata = False
        """Whether the first metadata is all that is waited for."""
        self._cancelled = threading.Event()

    def begin(self, attempt: Attempt) -> Streamed | Failed:
        """One try, which nobody waits for yet."""
        made = self._sender.channels().begin(self._introduced(attempt), self._body, self._wishes)
        return self._begun(made)

    def _introduced(self, attempt: Attempt) -> Attempt:
        if attempt.tls is None:
            return attempt
        return introduced(attempt, attempt.tls, self._sender.mesh.telemetry)

    def _begun(self, made: Streamed | Failed) -> Streamed | Failed:
        if isinstance(made, Streamed):
            self._flying.add(made)
            if self.cancelled:
                made.call.cancel()
        return made

    def begin_first(self, flow: Flow) -> Flow:
        """The first try, if nothing is before it; and what follows. Does not wait."""
        action = flow.send(None)
        while isinstance(action, Mirror):
            self.mirror(action)
            action = flow.send(None)
        if isinstance(action, Attempt):
            try:
                asked = (self._introduced(action), self._body, self._wishes)
                made = self._sender.channels().begin_now(*asked)
            except BaseException:
                flow.close()
                raise
            if made is None:
                self._begin_later(action)
            else:
                self._first = self._begun(made)
        return resumed(flow, action)

    def _begin_later(self, attempt: Attempt) -> None:
        """On a thread of its own: a channel has to be made."""
        later = self._later = Future()

        def run() -> None:
            made: Streamed | Failed | None = None
            try:
                made = self.begin(attempt)
                later.set_result(made)
            except InvalidStateError:  # the call was given up
                if isinstance(made, Streamed):
                    self._end(made)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                with contextlib.suppress(InvalidStateError):
                    later.set_exception(error)

        threading.Thread(target=run, name="meshlib-grpc-begin", daemon=True).start()

    def send(self, attempt: Attempt) -> Streamed | Failed:
        """One try. Gone."""
        first, self._first = self._first, None
        later = self._later
        if later is not None:
            try:
                first = later.result()
            except CancelledError:
                raise Gone from None
            finally:
                self._later = None
        made = self._make(attempt, None, first)
        if not isinstance(made, Failed):
            self.current = made
        return made

    def _make(
        self, attempt: Attempt, cut: Cut | None, first: Streamed | Failed | None = None
    ) -> Streamed | Failed:
        made = first or self.begin(attempt)
        if isinstance(made, Failed):
            return made
        settled = self._settled(made, cut)
        looks = LOOKS
        while looks > 1 and isinstance(settled, Failed) and made.again(settled):
            looks -= 1
            self._end(made)
            made = self.begin(attempt)
            if isinstance(made, Failed):
                return made
            settled = self._settled(made, cut)
        if self.cancelled:
            self._end(made)
            raise Gone
        if isinstance(settled, Failed):
            self._end(made)
        return settled

    def _settled(self, made: Streamed, cut: Cut | None) -> Streamed | Failed:
        if cut is None:
            return made.settle(metadata=self.metadata)
        try:
            cut.during(None, made.call.cancel)
            return made.settle(metadata=self.metadata)
        except Broken as error:
            return error.failed
        finally:
            cut.over()

    def _end(self, made: Streamed) -> None:
        self._flying.discard(made)
        made.close()

    @property
    def cancelled(self) -> bool:
        """Whether the application ended it."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ends it; who waits for it has to close it."""
        self._cancelled.set()
        later = self._later
        if later is not None:
            later.cancel()
        for made in tuple(self._flying):
            made.call.cancel()

    def delivered(self) -> None:
        """The application has the response."""
        self._body.once()

    def close(self) -> None:
        """Ends what goes on."""
        later = self._later
        if later is not None:
            later.cancel()
        self._body.drop()
        for made in tuple(self._flying):
            made.close()

    def _came(self, response: Streamed) -> None:
        self.current = response

    def several(self) -> Hedged:
        """Several at a time."""
        return Hedged(self._make, self._sender.threads, self._came)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        """Waits. Gone."""
        if self._cancelled.wait(seconds):
            raise Gone


def resumed(flow: Flow, action: Action) -> Generator[Action, Event, None]:
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
