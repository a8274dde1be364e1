"""Hedged retries: a try whose time has passed goes on, and another one begins beside it.

Rules (Envoy, Filter::onSoftPerTryTimeout, onUpstreamHeaders and onUpstreamReset):

- When the time of a try has passed, outlier detection hears of a time-out and a retry follows after its
  back-off, whatever the conditions of the policy, if retries are left and the breaker has a slot.
- The first response that asks for no retry wins. One that does, of a try that was hedged already or when
  nothing is left, is dropped while another try is in flight or about to begin; so is any failure. What
  comes last is what the request comes to.
- A try is followed by one retry at most: for its time, or for what became of it.
- The next service is told of the time of the whole, for it may take that.
- A body is sent twice at once only if it is known whole; until then the time of a try counts anew.
- Each try holds a slot of its own, the request one retry slot. What is in flight when the flow delivers or
  ends is given up by the driver.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING

from meshlib.core import retry, timeout
from meshlib.core.actions import (
    Action,
    Attempt,
    Await,
    Begin,
    BodyEnded,
    Discard,
    Ended,
    Event,
    Flow,
    Raise,
    Sleep,
)
from meshlib.core.actions import joined as both
from meshlib.core.balance.cluster import Cluster
from meshlib.core.breaker import Slots
from meshlib.core.ledger import ClusterState, HostState
from meshlib.core.mtls import secure
from meshlib.core.request import Failed, Failure, Outcome, RequestHead, ResponseHead
from meshlib.core.retry import RetryPolicy

if TYPE_CHECKING:
    from meshlib.core.outbound import OutboundRequest

HEADER = b"x-envoy-hedge-on-per-try-timeout"
"""By which a request says itself, `true` or `false`, whether its tries are hedged."""


def wanted(route: bool, head: RequestHead) -> bool:
    """Whether the tries of a request are hedged; `route`: what its route says."""
    said = head.header(HEADER)
    return said == b"true" or (route and said != b"false")


class _Try:
    """One try in flight."""

    __slots__ = ("due", "endpoint", "head", "hedged", "host", "slots", "timed_out")

    def __init__(
        self, head: RequestHead, endpoint: str, host: HostState, slots: Slots, due: float | None
    ) -> None:
        self.head, self.endpoint, self.host, self.slots = head, endpoint, host, slots
        self.due = due
        """When its time has passed; None: that is over."""
        self.hedged = False
        """Whether another one follows it."""
        self.timed_out = False


class Hedge:
    """All tries of one request."""

    def __init__(
        self,
        request: "OutboundRequest",
        cluster: Cluster,
        state: ClusterState,
        policy: RetryPolicy | None,
        per_try: float,
        deadline: float | None,
        sent: RequestHead,
        key: int | None,
    ) -> None:
        """`per_try`: seconds after which a try is hedged; `sent`: the request as it goes out."""
        self._request, self._cluster, self._state = request, cluster, state
        self._policy = policy if policy is not None and policy.retry_on else None
        self._per_try, self._deadline, self._sent, self._key = per_try, deadline, sent, key
        self._tries: dict[int, _Try] = {}
        self._begins: float | None = request.clock()
        """When the next try begins; None: none is to."""
        self._left = 0 if self._policy is None else self._policy.retries
        self._flag = "-"
        self._retries = Slots(state, request.clock)

    def run(self) -> Flow:
        """The tries until one is good, or none is left."""
        try:
            with self._retries:
                yield from self._run()
        finally:
            for one in self._tries.values():
                one.slots.end()

    def _run(self) -> Flow:
        request = self._request
        while True:
            now = request.clock()
            if self._begins is not None and now >= self._begins:
                attempt = self._begin(now)
                if attempt is None:
                    detail = f"cluster {self._cluster.name} has no healthy endpoint"
                    facts = request.facts(both(self._flag, "UH"), detail)
                    yield request.reply(facts, b"no healthy upstream", number=request.attempts + 1)
                    return
                yield Begin(attempt)
                continue
            newest = self._tries.get(request.attempts)
            due = None if newest is None else newest.due
            if newest is not None and due is not None and now >= due:
                self._passed(newest, now)
                continue
            if not self._tries:
                assert self._begins is not None  # noqa: S101 - else the flow has ended
                if self._deadline is not None and self._begins >= self._deadline:
                    yield Sleep(max(0.0, self._deadline - now))
                    failed = Failed(Failure.TIMED_OUT, "the time of the route ran out between two tries")
                    yield Raise(failed, request.facts(both("UT", self._flag), failed.detail))
                    return
                yield Sleep(self._begins - now)
                continue
            until = min((at for at in (due, self._begins) if at is not None), default=None)
            event = yield Await(None if until is None else until - now)
            if isinstance(event, Ended) and (yield from self._ended(event)):
                return

    def _begin(self, now: float) -> Attempt | None:
        """The next try; None: it has no endpoint."""
        request, cluster, deadline = self._request, self._cluster, self._deadline
        self._begins = None
        found = request.pick(cluster, self._state, now, self._policy, self._key)
        if found is None:
            return None
        request.attempts += 1
        request.endpoint = found.key
        if request.attempts > 1:
            left = None if deadline is None else deadline - now
            self._sent = timeout.told(request.action, self._sent, 0.0, left)
        host, slots = self._state.host(found.key), Slots(self._state, request.clock)
        slots.begin(host)
        head = request.numbered(self._sent)
        self._tries[request.attempts] = _Try(head, found.key, host, slots, now + self._per_try)
        tls, number = secure(cluster, found), request.attempts
        return Attempt(
            cluster.name,
            found.address,
            head,
            cluster.upstream,
            None,
            deadline,
            number,
            tls,
            slots,
            found.at,
        )

    def _passed(self, one: _Try, now: float) -> None:
        """The time of a try has passed."""
        if not self._request.body.whole():
            one.due = now + self._per_try
            return
        one.due = None
        one.timed_out = True
        self._learn(one, Failed(Failure.TRY_TIMED_OUT, connected=not one.slots.waiting))
        if self._policy is not None:
            self._follow(one, self._policy)

    def _ended(self, event: Ended) -> Generator[Action, Event, bool]:
        """What became of a try; `yield from` it gives whether the request has come to its end."""
        request, one, outcome = self._request, self._tries[event.number], event.outcome
        request.endpoint = one.endpoint
        late = isinstance(outcome, Failed) and outcome.how is Failure.TIMED_OUT
        if late:
            self._ran_out(one, outcome)
        else:
            self._learn(one, outcome)
            policy, follows = self._policy, False
            wants = policy is not None and retry.wants_retry(policy, outcome)
            if policy is not None and wants and not one.hedged and request.body.replayable():
                follows = self._follow(one, policy)
            others = len(self._tries) > 1 or self._begins is not None
            if follows or (others and (wants or isinstance(outcome, Failed))):
                if isinstance(outcome, ResponseHead):
                    yield Discard()
                del self._tries[event.number]
                one.slots.end()
                return False
        for number, other in list(self._tries.items()):
            if other is not one:
                other.slots.end()
                del self._tries[number]
        ended = yield request.last(outcome, one.head, self._deadline, self._flag)
        if isinstance(ended, BodyEnded) and ended.failed is not None:
            self._learn(one, ended.failed, late=True)
        return True

    def _follow(self, one: _Try, policy: RetryPolicy) -> bool:
        """Whether another try follows this one."""
        request = self._request
        if self._left == 0:
            self._retries.end_retry()
            self._say("URX")
            return False
        self._left -= 1
        if not self._retries.take_retry(self._cluster.upstream.limits):
            self._say("UO")
            return False
        one.hedged = True
        if policy.avoid_previous_hosts or policy.leave_priorities_after:
            request.tried.append(one.endpoint)
        self._begins = request.clock() + retry.back_off(policy, request.attempts, request.dice)
        return True

    def _say(self, flag: str) -> None:
        if flag not in self._flag.split(","):
            self._flag = both(self._flag, flag)

    def _ran_out(self, one: _Try, outcome: Outcome) -> None:
        """The time of the whole has passed, for all that are in flight."""
        for other in self._tries.values():
            if not other.timed_out:
                connected = not other.slots.waiting
                self._learn(
                    other, outcome if other is one else Failed(Failure.TIMED_OUT, connected=connected)
                )

    def _learn(self, one: _Try, outcome: Outcome, *, late: bool = False) -> None:
        policy, request = self._cluster.outlier, self._request
        if policy is not None:
            newest, request.endpoint = request.endpoint, one.endpoint
            request.learn(policy, self._cluster, self._state, one.host, outcome, late=late)
            request.endpoint = newest
