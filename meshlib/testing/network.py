"""Attempts to answers without a network: what a mesh sends with in a test.

`Exchange.run` says step by step what happens to an attempt; two drivers, for threads and for tasks, do it,
and there is no other twin. Rules:

- In this order: a connection of the cluster's pool, which decides as ever (HTTP/1.1); the call is
  recorded; holds; faults of the upstream's; its script; the answer's delay.
- The limits of the try, the route and the application pass on the mesh's clock, as they would on the wire.
- A copy of a request (mirror) is answered at once, in the caller's turn; nobody looks at the answer.
"""

import asyncio
import math
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from meshlib.core.actions import Attempt, Await, Begin, Mirror
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.hedge import AsyncTries
from meshlib.dataplane.hedge_blocking import Came
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.dropped import undertaker
from meshlib.dataplane.http.failures import overflowing
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits, OwnTimeouts
from meshlib.dataplane.http.pool import Found, Kept, Place, Pool
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.secure import address_of
from meshlib.dataplane.network import Network
from meshlib.testing.answers import Response
from meshlib.testing.calls import Call
from meshlib.testing.stage import Stage


class Pause(NamedTuple):
    """So much time passes."""

    seconds: float


class Until(NamedTuple):
    """Somebody else does something; `done` may raise that a limit passed."""

    done: Callable[[], bool]
    what: str


Steps = Generator[Pause | Until, None, "Played | Failed"]


class Played:
    """A response of a script. It is iterated once, by a thread or by a task."""

    version = b"HTTP/1.1"
    reason = b""
    whole: bytes | None = None

    def __init__(self, response: Response, method: str, ended: Callable[[], None]) -> None:
        self.head = ResponseHead(response.status, response.headers)
        bare = method == "HEAD" or response.status in (204, 304)
        self._chunks = iter(() if bare else response.chunks)
        self._breaks = response.breaks
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        while isinstance(chunk := self.ready(), bytes):
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(chunk := self.ready(), bytes):
            yield chunk

    def ready(self) -> bytes | Need:
        """The next part of the body: all of it is there."""
        chunk = next(self._chunks, None)
        if chunk is not None:
            return chunk
        self.close()
        if self._breaks:
            raise Broken(Failed(Failure.BROKEN_OFF, "the body broke off: the script says so"))
        return Need.NOTHING

    async def more(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """Ends the exchange."""
        ended, self._ended = self._ended, _nothing
        ended()


def _nothing() -> None:
    pass


class _Connection:
    """Stands for a connection in a pool."""

    keeps = math.inf

    def usable(self) -> bool:
        return True


class Exchange:
    """Plays attempts of one client."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._pools: defaultdict[str, Pool[_Connection]] = defaultdict(Pool)
        self._lock = threading.Lock()
        self._lost: deque[Pool[_Connection]] = deque()
        self._undertaker = undertaker

    def run(self, attempt: Attempt, content: bytes, own: OwnTimeouts) -> Steps:
        """One attempt; UnexpectedCall, TooSlow, and what a function of the script raises."""
        limits = Limits(self._stage.clock, own, attempt.try_deadline, attempt.deadline)
        lease = None
        try:
            if attempt.upstream.http2 is None:
                lease = yield from self._leased(attempt, limits)
            elif attempt.queue is not None:
                attempt.queue.waits()
            if attempt.queue is not None and not attempt.queue.goes_on(attempt.upstream.limits):
                _end(lease)
                return replace(overflowing(), connected=False)
        except Broken as error:
            return replace(error.failed, connected=False)
        answer: Response | Failed | None = None
        try:
            answer = yield from self._answered(attempt, content, limits)
        finally:
            if not isinstance(answer, Response):
                _end(lease, reusable=False)
        if isinstance(answer, Response):
            whole = not answer.breaks
            return Played(answer, attempt.head.method, lambda: _end(lease, reusable=whole))
        return answer

    def _leased(self, attempt: Attempt, limits: Limits) -> Generator[Pause | Until, None, Lease[_Connection]]:
        """A connection of the cluster's pool, as `blocking.Connections` takes one."""
        most, begun = attempt.upstream.limits, self._stage.clock()
        address, pool = address_of(attempt), self._pools[attempt.cluster]
        place: Place | None = None
        found: Found[_Connection] = Found()

        def seek() -> bool:
            nonlocal found
            if place is not None:
                limits.left_since(begun, "pool", limits.own.pool)
            with self._lock:
                self._bury()
                found = pool.seek(address, most.max_connections, self._stage.clock(), place, most.max_pending)
                return found.kept is not None or found.room

        if not seek():
            if found.overflow or not attempt.upstream.waits:
                raise Broken(overflowing())
            with self._lock:
                place = pool.join(self._stage.clock.changed)
            if attempt.queue is not None:
                attempt.queue.waits()
            self._undertaker.expect(self)
            head = attempt.head
            what = f"{head.method} {head.scheme}://{head.authority}{head.path}"
            try:
                yield Until(seek, f"{what} waits for one of {most.max_connections} connections")
            finally:
                with self._lock:
                    pool.leave(place)
        kept = found.kept
        if kept is None:
            if attempt.queue is not None:
                attempt.queue.waits()
            with self._lock:
                pool.made()
            dies = self._stage.clock() + attempt.upstream.max_connection_duration
            kept = Kept(_Connection(), address, dies=dies)
        return Lease(self, pool, kept, attempt, fresh=found.kept is None)

    def take_back(self, lease: Lease[_Connection], reusable: bool) -> None:
        """An exchange has ended."""
        now = self._stage.clock()
        with self._lock:
            if reusable and now < lease.kept.dies:
                lease.pool.give_back(lease.kept, now, lease.attempt.upstream.idle_timeout)
            else:
                lease.pool.gone()

    def note_lost(self, pool: Pool[_Connection], connection: _Connection) -> None:
        """Nobody ended the exchange."""
        self._lost.append(pool)
        self._undertaker.note(self._end_dropped)

    def close(self) -> None:
        """Nobody waits for a connection any more."""
        self._undertaker.forget(self)

    def _bury(self) -> None:
        """Ends the dropped exchanges. Under the lock."""
        while self._lost:
            self._lost.popleft().gone()

    def _end_dropped(self) -> None:
        with self._lock:
            self._bury()

    def _answered(
        self, attempt: Attempt, content: bytes, limits: Limits
    ) -> Generator[Pause | Until, None, Response | Failed]:
        stage, own = self._stage, limits.own
        begun = stage.clock()
        call, served = stage.called(attempt, content)
        try:
            yield from self._held(call, begun, limits)
            answer = stage.answer(call, served)
            if isinstance(answer, Response):
                seconds, most = answer.delay, own.read
            elif answer.how is Failure.CONNECT_TIMED_OUT:
                seconds, most = min(attempt.upstream.connect_timeout, own.connect or math.inf), None
            else:
                seconds, most = 0.0, None
            if seconds:
                left = limits.left_since(begun, "read", most)
                yield Pause(seconds if left is None else min(seconds, left))
                if left is not None and left <= seconds:
                    raise limits.passed("read", most)
        except Broken as error:
            answer = error.failed
        if isinstance(answer, Failed) and answer.how in (Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT):
            answer = replace(answer, connected=False)
        call.outcome = answer.status if isinstance(answer, Response) else answer.how
        return answer

    def _held(self, call: Call, begun: float, limits: Limits) -> Generator[Pause | Until, None, None]:
        own = limits.own.read

        def free() -> bool:
            limits.left_since(begun, "read", own)
            return not any(hold.open for hold in holds)

        while holds := self._stage.held(call):
            for hold in holds:
                hold.take(call)
            try:
                yield Until(free, f"{call!r} is held")
            finally:
                for hold in holds:
                    hold.drop(call)


def _end(lease: Lease[_Connection] | None, *, reusable: bool = True) -> None:
    if lease is not None:
        lease.end(reusable)


class Connections:
    """Those of a client, for threads."""

    def __init__(self, stage: Stage) -> None:
        self.exchange = Exchange(stage)
        self._clock = stage.clock

    def send(
        self,
        attempt: Attempt,
        body: bytes | Iterable[bytes],
        own: OwnTimeouts = NO_TIMEOUTS,
        cut: Cut | None = None,
    ) -> Played | Failed:
        """One try. `cut` ends nothing: what a script says is done."""
        content = body if isinstance(body, bytes) else b"".join(body)
        with self._clock.calling():
            return self._play(self.exchange.run(attempt, content, own))

    def _play(self, steps: Steps) -> Played | Failed:
        raised: BaseException | None = None
        while True:
            try:
                step = next(steps) if raised is None else steps.throw(raised)
            except StopIteration as end:
                played: Played | Failed = end.value
                return played
            raised = None
            try:
                if isinstance(step, Pause):
                    self._clock.sleep(step.seconds)
                else:
                    self._clock.wait(step.done, step.what)
            except BaseException as error:  # noqa: BLE001 - it goes up from where the step was asked for
                raised = error

    def close(self) -> None:
        """Nobody waits for a connection any more."""
        self.exchange.close()

    def abandon(self) -> None:
        """There is nothing to let go."""


class AsyncConnections:
    """Those of a client, for tasks."""

    def __init__(self, stage: Stage, exchange: Exchange | None = None) -> None:
        """`exchange`: of whom the connections are; None: its own."""
        self._exchange = exchange or Exchange(stage)
        self._clock = stage.clock

    async def send(
        self, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Played | Failed:
        """One try."""
        content = body if isinstance(body, bytes) else b"".join([chunk async for chunk in body])
        steps = self._exchange.run(attempt, content, own)
        raised: BaseException | None = None
        while True:
            try:
                step = next(steps) if raised is None else steps.throw(raised)
            except StopIteration as end:
                played: Played | Failed = end.value
                return played
            raised = None
            try:
                if isinstance(step, Pause):
                    await self._clock.asleep(step.seconds)
                else:
                    await self._clock.await_(step.done, step.what)
            except BaseException as error:  # noqa: BLE001 - it goes up from where the step was asked for
                raised = error

    def close(self) -> None:
        """Nobody waits for a connection any more."""
        self._exchange.close()


class Several:
    """Hedged tries for a thread: tasks of a loop that turns while the thread waits, so that time passes for
    them in the same order as for tasks. It turns on a thread of its own, for the caller's may have a loop.
    """

    def __init__(self, stage: Stage, connections: Connections, body: RequestBody, own: OwnTimeouts) -> None:
        playing = AsyncConnections(stage, connections.exchange)

        async def send(attempt: Attempt) -> Played | Failed:
            return await playing.send(attempt, body.acontent(), own)

        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1)
        self._tries = AsyncTries(send, stage.clock.asleep)

    def do(self, step: Begin | Await) -> Came[Any]:
        """What a flow says."""
        return self._thread.submit(self._loop.run_until_complete, self._tries.do(step)).result()

    async def _close(self) -> None:
        self._tries.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    def close(self) -> None:
        """Gives up what is in flight."""
        with self._thread:
            self._thread.submit(self._loop.run_until_complete, self._close()).result()
        self._loop.close()


def network(stage: Stage) -> Network:
    """What a mesh sends with that plays on this stage."""

    def copy(mirror: Mirror, body: RequestBody) -> None:
        def play(content: bytes | None) -> None:
            if content is not None:
                call, served = stage.called(mirror, content)
                answer = stage.answer(call, served)
                call.outcome = answer.status if isinstance(answer, Response) else answer.how

        body.when_known(play)

    def connections(*_: Any) -> Connections:
        return Connections(stage)

    def aconnections(*_: Any) -> AsyncConnections:
        return AsyncConnections(stage)

    def several(connections: Any, body: RequestBody, own: OwnTimeouts) -> Several:
        return Several(stage, connections, body, own)

    sleep, asleep = stage.clock.sleep, stage.clock.asleep
    return Network(connections, aconnections, sleep, asleep, mirror=copy, several=several)
