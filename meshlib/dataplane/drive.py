"""Two drivers, for threads and for tasks, do what `core.outbound.flow` says. There is no other twin.

Rules:

- A flow is ended or closed exactly once: by a reply, a failure, the end or close of the body, or an error
  on the way.
- What a driver does, it does with `Hands`: send, mirror, sleep. It decides nothing.
- The application's own limits (`TooSlow`) and errors of its own body go straight up.
"""

import contextlib
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshlib.core.actions import (
    Attempt,
    Await,
    Begin,
    BodyEnded,
    Deliver,
    Discard,
    Event,
    Facts,
    Flow,
    Mirror,
    Raise,
    Reply,
    Sleep,
)
from meshlib.core.request import Failed, Header
from meshlib.dataplane.body import BodyBroken
from meshlib.dataplane.http.limits import Broken, TooSlow
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.network import AsyncResponse, Received, Response, Several

if TYPE_CHECKING:
    from meshlib.dataplane.hedge import AsyncTries
    from meshlib.dataplane.http.upgrade import AsyncUpgraded, Upgraded
    from meshlib.dataplane.telemetry.outbound import Outbound


class FlightFailed(Exception):
    """A request ended without a (whole) response; the integration makes it an error of its library."""

    def __init__(self, failed: Failed, facts: Facts) -> None:
        super().__init__(failed.detail)
        self.failed = failed
        self.facts = facts


class Hands(Protocol):
    """What the blocking driver acts with."""

    def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        ...

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...

    def several(self) -> Several:
        """What makes several at a time."""
        ...


class AsyncHands(Protocol):
    """What the asyncio driver acts with."""

    def send(self, attempt: Attempt) -> Awaitable[AsyncResponse | Failed]:
        """One try."""
        ...

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        ...

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Waits."""
        ...

    def several(self) -> "AsyncTries":
        """What makes several at a time."""
        ...


class Answer(NamedTuple):
    """What a request came to. `body` is bytes in replies of the mesh's own, or if it came with the head."""

    status: int
    headers: tuple[Header, ...]
    facts: Facts
    body: "bytes | Body | AsyncBody"
    version: bytes = b"HTTP/1.1"
    reason: bytes = b""
    own: bool = False
    """Whether it is a reply of the mesh's own."""

    def wire_headers(self) -> list[Header]:
        """The headers as the application is given them: a reply of the mesh's own says how long it is."""
        headers = list(self.headers)
        if self.own and isinstance(self.body, bytes):
            headers.append((b"content-length", b"%d" % len(self.body)))
        return headers


_WHOLE = BodyEnded()
_NOT_WHOLE = BodyEnded(False)


class _Ending:
    """The end of a flow whose response was delivered: told once."""

    __slots__ = ("_flow", "facts")

    def __init__(self, flow: Flow, facts: Facts) -> None:
        self._flow: Flow | None = flow
        self.facts = facts

    def tell(self, ended: BodyEnded, watched: "Outbound | None") -> None:
        flow, self._flow = self._flow, None
        if flow is None:
            return
        if watched is not None:
            if ended.complete:
                watched.end()
            elif ended.failed is not None:
                watched.failed(ended.failed, self.facts)
            else:
                watched.gave_up()
        _end(flow, ended)

    def ended(self, upgraded: "Upgraded | AsyncUpgraded", watched: "Outbound | None") -> None:
        """An upgrade has no end that would be too early."""
        if watched is not None:
            watched.received += upgraded.received
            watched.sent += upgraded.sent
        self.tell(_WHOLE, watched)

    def broken(self, error: Broken, watched: "Outbound | None") -> FlightFailed:
        self.tell(BodyEnded(False, error.failed), watched)
        return FlightFailed(error.failed, self.facts)


class Body:
    """A delivered body, for threads."""

    __slots__ = ("_ending", "_response", "watched")

    def __init__(self, response: Response, ending: _Ending) -> None:
        self._response = response
        self._ending = ending
        self.watched: Outbound | None = None
        """Is told of the body's bytes and of its end."""

    def __iter__(self) -> Iterator[bytes]:
        """The body. FlightFailed: it broke off, or the time of the route ran out."""
        watched = self.watched
        try:
            if watched is None:
                yield from self._response
            else:
                for chunk in self._response:
                    watched.received += len(chunk)
                    yield chunk
        except Broken as error:
            raise self._ending.broken(error, watched) from error
        except BaseException:
            self._ending.tell(_NOT_WHOLE, watched)
            raise
        self._ending.tell(_WHOLE, watched)

    def finish(self) -> None:
        """Ends the request. If all of the body has come, its connection is used again."""
        with contextlib.suppress(Broken):
            while isinstance(part := self._response.ready(), bytes):
                if self.watched is not None:
                    self.watched.received += len(part)
            if part is Need.NOTHING:
                self._ending.tell(_WHOLE, self.watched)
        self.close()

    def upgraded(self) -> "Upgraded":
        """The bytes after a 101, both ways. It is the request, from now on. TypeError: it is no such."""
        from meshlib.dataplane.http.upgrade import Upgraded

        found = self._response
        if not isinstance(found, Upgraded):
            raise TypeError("the connection speaks no other protocol")
        found.ended = lambda: self._ending.ended(found, self.watched)
        return found

    def close(self) -> None:
        """Ends the request."""
        self._response.close()
        self._ending.tell(_NOT_WHOLE, self.watched)


class AsyncBody:
    """A delivered body, for tasks."""

    __slots__ = ("_ending", "_parts", "_response", "watched")

    def __init__(self, response: AsyncResponse, ending: _Ending) -> None:
        self._response = response
        self._parts = aiter(response)
        self._ending = ending
        self.watched: Outbound | None = None
        """Is told of the body's bytes and of its end."""

    def __aiter__(self) -> "AsyncBody":
        """The body. FlightFailed: it broke off, or the time of the route ran out."""
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._parts)
        except StopAsyncIteration:
            self._ending.tell(_WHOLE, self.watched)
            raise
        except Broken as error:
            raise self._ending.broken(error, self.watched) from error
        except BaseException:
            self._ending.tell(_NOT_WHOLE, self.watched)
            raise
        if self.watched is not None:
            self.watched.received += len(chunk)
        return chunk

    # The same for who reads at a pace of its own: what has come already, and a wait that may be cancelled.

    def ready(self) -> bytes | Need:
        """The next part, if it has come. FlightFailed."""
        try:
            part = self._response.ready()
        except Broken as error:
            raise self._ending.broken(error, self.watched) from error
        if part is Need.NOTHING:
            self._ending.tell(_WHOLE, self.watched)
        elif isinstance(part, bytes) and self.watched is not None:
            self.watched.received += len(part)
        return part

    async def more(self) -> None:
        """Waits until more has come for `ready`. FlightFailed; TooSlow."""
        try:
            await self._response.more()
        except Broken as error:
            raise self._ending.broken(error, self.watched) from error
        except TooSlow:
            self._ending.tell(_NOT_WHOLE, self.watched)
            raise

    def finish(self) -> None:
        """As of `Body`."""
        with contextlib.suppress(FlightFailed):
            while isinstance(self.ready(), bytes):
                pass
        self.close()

    def upgraded(self) -> "AsyncUpgraded":
        """As of `Body`."""
        from meshlib.dataplane.http.upgrade import AsyncUpgraded

        found = self._response
        if not isinstance(found, AsyncUpgraded):
            raise TypeError("the connection speaks no other protocol")
        found.ended = lambda: self._ending.ended(found, self.watched)
        return found

    def close(self) -> None:
        """Ends the request."""
        self._response.close()
        self._ending.tell(_NOT_WHOLE, self.watched)


def drive(flow: Flow, hands: Hands) -> Answer:
    """Runs a flow to its answer. FlightFailed; TooSlow; errors of the application's body."""
    event: Event = None
    response: Response | None = None
    tries: Several | None = None
    try:
        while True:
            match flow.send(event):
                case Attempt() as attempt:
                    sent = hands.send(attempt)
                    response = None if isinstance(sent, Failed) else sent
                    event = sent if isinstance(sent, Failed) else sent.head
                    continue
                case Deliver() as deliver:
                    assert response is not None  # noqa: S101 - core delivers after a response
                    if response.whole is not None:
                        _end(flow)
                        return _delivered(response, deliver, response.whole)
                    body = Body(response, _Ending(flow, deliver.facts))
                    return _delivered(response, deliver, body)
                case Mirror() as mirror:
                    hands.mirror(mirror)
                case Sleep(seconds):
                    hands.sleep(seconds)
                case Discard():
                    _drop(response)
                    response = None
                case Reply() as reply:
                    flow.close()
                    return Answer(reply.status, reply.headers, reply.facts, reply.body, own=True)
                case Raise(failed, facts):
                    flow.close()
                    raise FlightFailed(failed, facts)
                case Begin() | Await() as step:
                    tries = tries or hands.several()
                    response, event = tries.do(step)
                    continue
            event = None
    except BodyBroken as error:
        own = error.__cause__ or error
        _abandon(flow, response)
    except BaseException:
        _abandon(flow, response)
        raise
    finally:
        if tries is not None:
            tries.close()
    raise own  # out here, so that its own cause and context stay as they are


async def adrive(flow: Flow, hands: AsyncHands) -> Answer:
    """Runs a flow to its answer. FlightFailed; TooSlow; errors of the application's body."""
    event: Event = None
    response: AsyncResponse | None = None
    tries: AsyncTries | None = None
    try:
        while True:
            match flow.send(event):
                case Attempt() as attempt:
                    sent = await hands.send(attempt)
                    response = None if isinstance(sent, Failed) else sent
                    event = sent if isinstance(sent, Failed) else sent.head
                    continue
                case Deliver() as deliver:
                    assert response is not None  # noqa: S101 - core delivers after a response
                    if response.whole is not None:
                        _end(flow)
                        return _delivered(response, deliver, response.whole)
                    body = AsyncBody(response, _Ending(flow, deliver.facts))
                    return _delivered(response, deliver, body)
                case Mirror() as mirror:
                    hands.mirror(mirror)
                case Sleep(seconds):
                    await hands.sleep(seconds)
                case Discard():
                    _drop(response)
                    response = None
                case Reply() as reply:
                    flow.close()
                    return Answer(reply.status, reply.headers, reply.facts, reply.body, own=True)
                case Raise(failed, facts):
                    flow.close()
                    raise FlightFailed(failed, facts)
                case Begin() | Await() as step:
                    tries = tries or hands.several()
                    response, event = await tries.do(step)
                    continue
            event = None
    except BodyBroken as error:
        own = error.__cause__ or error
        _abandon(flow, response)
    except BaseException:
        _abandon(flow, response)
        raise
    finally:
        if tries is not None:
            tries.close()
    raise own  # out here, so that its own cause and context stay as they are


def _end(flow: Flow, ended: BodyEnded = _WHOLE) -> None:
    """Tells of the body's end, which is the flow's."""
    try:
        flow.send(ended)
    except StopIteration:
        return
    flow.close()


def _delivered(response: Received, deliver: Deliver, body: bytes | Body | AsyncBody) -> Answer:
    return Answer(
        response.head.status, deliver.headers, deliver.facts, body, response.version, response.reason
    )


def _drop(response: Received | None) -> None:
    if response is not None:
        response.close()


def _abandon(flow: Flow, response: Received | None) -> None:
    flow.close()
    _drop(response)
