"""What the flow of a call acts with, for threads: it makes tries and waits for them."""

import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, InvalidStateError

from meshlib.core.actions import Action, Attempt, Deliver, Event, Flow, Mirror, Raise, Reply
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
    """What any other call acts with: its first try may begin, and end, before somebody waits."""

    def __init__(
        self,
        sender: Sender,
        request: Request,
        body: Message | Messages,
        wishes: Wishes,
        ended: Callable[[], None],
    ) -> None:
        """`ended` is called when gRPC has told of the end of a try: on its thread, which is not to wait."""
        self._sender = sender
        self._ended = ended
        self._request = request
        self._body = body
        self._wishes = wishes
        self._first: Streamed | Failed | None = None
        self._later: Future[Streamed | Failed] | None = None
        """The first try, where it had to wait."""
        self._came: Streamed | Failed | None = None
        """What the first try came to, of which the flow was told already."""
        self._flying: set[Streamed] = set()
        """What was begun and is not over."""
        self.current: Streamed | None = None
        """What was answered."""
        self.metadata = False
        """Whether the first metadata is all that is waited for."""
        self.patience = False
        """Whether nobody is in a hurry."""
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
            if made.call.add_callback(self._ended):
                return made
        self._ended()
        return made

    def begin_first(self, flow: Flow) -> tuple[Flow, Action]:
        """The first try, if nothing is before it, and what follows; and what the flow says first. Does not
        wait.
        """
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
        return resumed(flow, action), action

    @property
    def over(self) -> bool:
        """Whether it is known how what was begun, or answered, ended. Does not wait."""
        made = self.current or self._first
        later = self._later
        if made is None and later is not None and later.done() and not later.cancelled():
            made = None if later.exception() else later.result()
        return isinstance(made, Failed) or (made is not None and made.over)

    def foresee(self, flow: Flow) -> tuple[Flow, bool]:
        """The flow after its first try, which is over; and whether more is to be done than to tell of that.
        Does not wait. Gone.
        """
        if self.cancelled:
            raise Gone
        made = self._first
        if made is None:
            assert self._later is not None  # noqa: S101 - it is over
            made, self._later = self._later.result(), None
        attempt = flow.send(None)
        came = made if isinstance(made, Failed) else made.settle()
        if isinstance(made, Streamed) and isinstance(came, Failed):
            if made.again(came):
                self._first = made
                return resumed(flow, attempt), True
            self._end(made)
        self._first, self._came = None, came
        action = flow.send(came if isinstance(came, Failed) else came.head)
        return resumed(flow, attempt, action), not isinstance(action, (Deliver, Reply, Raise))

    def _begin_later(self, attempt: Attempt) -> None:
        """On a thread of its own: a channel has to be made."""
        later = self._later = Future()

        def run() -> None:
            made: Streamed | Failed | None = None
            try:
                made = self.begin(attempt)
                later.set_result(made)
                self._ended()
            except InvalidStateError:  # the call was given up
                if isinstance(made, Streamed):
                    self._end(made)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                with contextlib.suppress(InvalidStateError):
                    later.set_exception(error)

        threading.Thread(target=run, name="meshlib-grpc-begin", daemon=True).start()

    def send(self, attempt: Attempt) -> Streamed | Failed:
        """One try. Gone."""
        came, self._came = self._came, None
        if came is not None:
            if not isinstance(came, Failed):
                self.current = came
            return came
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
        wanted = {"metadata": self.metadata, "patience": self.patience}
        if cut is None:
            return made.settle(**wanted)
        try:
            cut.during(None, made.call.cancel)
            return made.settle(**wanted)
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

    def close(self) -> None:
        """Ends what goes on."""
        later = self._later
        if later is not None:
            later.cancel()
        self._body.drop()
        for made in tuple(self._flying):
            made.close()

    def _won(self, response: Streamed) -> None:
        self.current = response

    def several(self) -> Hedged:
        """Several at a time."""
        return Hedged(self._make, self._sender.threads, self._won)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        """Waits. Gone."""
        if self._cancelled.wait(seconds):
            raise Gone


def resumed(flow: Flow, action: Action, following: Action | None = None) -> Generator[Action, Event, None]:
    """The same flow, whose first action was taken from it already; so was what followed, if it was that."""
    try:
        if following is not None:
            yield action
            action = following
        while True:
            event = yield action
            try:
                action = flow.send(event)
            except StopIteration:
                return
    finally:
        flow.close()
