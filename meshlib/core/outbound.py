"""One outgoing request, step by step, in order: the first file to read.

    rule ─► cluster by weight ─► faults ─► redirect or own answer ─► mirrors ─► tries ─► deliver
    a try: breaker slot, endpoint, Attempt, learn; then deliver, give up, or back off and again

`flow` decides and a driver acts (see `actions`). A slot is held in a `with` block here, so however
the request ends it is given back exactly once.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

from meshlib.core import hedge, mirror, retry, timeout
from meshlib.core.actions import (
    Action,
    Attempt,
    BodyEnded,
    Deliver,
    Discard,
    Event,
    Facts,
    Flow,
    Raise,
    Reply,
    Sleep,
)
from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.dns import named_address
from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.balance.hashing import key_of
from meshlib.core.balance.pick import Retry, pick, unlisted
from meshlib.core.breaker import Slots
from meshlib.core.faulted import Faulted
from meshlib.core.ledger import ClusterState, HostState, Ledger
from meshlib.core.local_reply import Edit, local_reply
from meshlib.core.mtls import secure
from meshlib.core.outlier import end_row, learn
from meshlib.core.outlier_policy import OutlierPolicy
from meshlib.core.request import Dice, Failed, Failure, Header, RequestHead, ResponseHead
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.forward import incoming, is_grpc, outgoing, pick_cluster, timeouts
from meshlib.core.route.reply import own_reply
from meshlib.core.route.rule import EXPECTED, Forward, Route, Timeouts, WeightedCluster
from meshlib.core.route.table import VirtualHost
from meshlib.core.view import View

_ATTEMPTS = b"x-envoy-attempt-count"
_CONSUMED = retry.CONSUMED | timeout.CONSUMED | {EXPECTED, _ATTEMPTS}
_FIRST = ((_ATTEMPTS, b"1"),)
_HTTP = (b"x-forwarded-proto", b"http")
_OVERLOADED = ((b"x-envoy-overloaded", b"true"),)
_OVERFLOW = b"upstream connect error or disconnect/reset before headers. reset reason: overflow"
_HURRIED = "the caller waited for less than the route allows"
_NOBODY_WAITS = Failed(
    Failure.TIMED_OUT, "the caller waits no longer, so that nothing was sent", connected=False
)
_FLAGS = {
    Failure.CONNECT_FAILED: "UF",
    Failure.CONNECT_TIMED_OUT: "UF",
    Failure.RESET_BEFORE_REQUEST: "UC",
    Failure.RESET: "UC",
    Failure.BROKEN_OFF: "UC",
    Failure.REFUSED_STREAM: "UR",
    Failure.REMOTE_RESET: "UR",
    Failure.TRY_TIMED_OUT: "UT",
    Failure.TIMED_OUT: "UT",
    Failure.PROTOCOL: "UPE",
    Failure.OVERFLOW: "UO",
}


class BodyFacts(Protocol):
    """What core asks of a request's body."""

    def replayable(self) -> bool:
        """Whether the body can be sent from its beginning once more, as things are now."""
        ...

    def whole(self) -> bool:
        """Whether all of it is known, and kept."""
        ...

    def once(self) -> None:
        """It is sent once at most: nothing of it need be kept."""
        ...


def flow(
    head: RequestHead,
    body: BodyFacts,
    view: View,
    name: str,
    ledger: Ledger,
    clock: Callable[[], float],
    dice: Dice,
    original: tuple[str, int],
    caller_timeout: float | None = None,
) -> Flow:
    """The request `head` to `name` (`host:port`, a key of the view's tables).

    `head` is the flow's from now on. `original` is the address the application named, for clusters that
    pass through; `caller_timeout` (seconds) bounds the route's time, None: no bound, 0 or less: nobody waits
    any more, and nothing is sent. `clock` gives seconds, never backwards.
    """
    table = view.tables.get(name)
    host = None if table is None else table.find_host(head.authority)
    version = view.version if table is None else table.version
    _add_sidecar_headers(head, ledger, dice)
    route = None if host is None else host.match(head, dice)
    if host is None or route is None:
        detail = (
            f"no rule of {name} takes the request" if host else f"no virtual host of {name} has this host"
        )
        return _answer(local_reply(head, 404, Facts(flag="NR", detail=detail, config_version=version)))
    action = route.action
    if isinstance(action, Forward):
        chosen = pick_cluster(action, dice)
        request = OutboundRequest(
            head, body, view, ledger, clock, dice, original, version, host, route, action, chosen
        )
        if caller_timeout is not None and caller_timeout <= 0:
            return _raised(Raise(_NOBODY_WAITS, request.facts("UT", _NOBODY_WAITS.detail)))
        fault = chosen.fault
        if fault is None or not fault.concerns(head, chosen.name):
            return request.run(caller_timeout)
        return Faulted(fault, head, request.facts(), ledger, dice, request.edit).run(
            request.run, caller_timeout
        )
    own = own_reply(route, action, head)
    origin = route.origin
    facts = Facts(route.name, origin.document, origin.source, detail=own.detail, config_version=version)
    answer = _answer(local_reply(head, own.status, facts, own.body, own.headers))
    if route.fault is None or not route.fault.concerns(head, ""):
        return answer
    return Faulted(route.fault, head, facts, ledger, dice, None).run(lambda _: answer, caller_timeout)


def _answer(reply: Reply) -> Flow:
    yield reply


def _raised(failed: Raise) -> Flow:
    yield failed


class OutboundRequest:
    """A request on its way to a cluster: what all its tries share."""

    __slots__ = (
        *("action", "attempts", "body", "chosen", "clock", "cookies", "dice", "endpoint", "head"),
        *("host", "hurried", "ledger", "original", "route", "tried", "version", "view"),
    )

    def __init__(
        self,
        head: RequestHead,
        body: BodyFacts,
        view: View,
        ledger: Ledger,
        clock: Callable[[], float],
        dice: Dice,
        original: tuple[str, int],
        version: str,
        host: VirtualHost,
        route: Route,
        action: Forward,
        chosen: WeightedCluster,
    ) -> None:
        self.head, self.body, self.view, self.ledger = head, body, view, ledger
        self.clock, self.dice, self.original, self.version = clock, dice, original, version
        self.host, self.route, self.action, self.chosen = host, route, action, chosen
        self.attempts = 0
        self.endpoint = ""
        self.hurried = False
        """Whether its time is the caller's, who waits for less than the route allows."""
        self.tried: list[str] = []
        self.cookies: tuple[Header, ...] = ()

    def run(self, caller_timeout: float | None) -> Flow:
        """Everything after the rule: what goes out, and the tries until one is good or none is left."""
        action, head = self.action, self.head
        cluster = self.view.clusters.get(self.chosen.name)
        if cluster is None:
            yield self.reply(self.facts("NC", f"cluster {self.chosen.name} is unknown"))
            return
        wishes = not _CONSUMED.isdisjoint(head.index)
        if wishes or caller_timeout is not None:
            limits = timeout.effective(action, head, caller_timeout)
            self.hurried = limits.whole == caller_timeout
        else:
            limits = action.times if action.max_grpc_timeout is None else timeouts(action, head)
        policy = retry.effective(action.retry, head) if wishes else action.retry
        if policy is None:
            self.body.once()
        sent = self.outgoing(limits, wishes)
        if action.mirrors:
            yield from mirror.mirrors(action.mirrors, sent, limits.whole, self.dice, self.find)
        now = self.clock()
        deadline = now + limits.whole if limits.whole else None
        state = self.ledger.cluster(cluster.name)
        key = None if cluster.hash_table is None else self.key(sent)
        if limits.per_try and self.hedged(wishes):
            yield from hedge.Hedge(self, cluster, state, policy, limits.per_try, deadline, sent, key).run()
            return
        with Slots(state, self.clock) as slots:
            while True:
                found = self.pick(cluster, state, now, policy, key)
                if found is None:
                    facts = self.facts("UH", f"cluster {cluster.name} has no healthy endpoint")
                    yield self.reply(facts, b"no healthy upstream", number=self.attempts + 1)
                    return
                self.attempts += 1
                self.endpoint = found.key
                if self.attempts > 1:
                    left = None if deadline is None else deadline - now
                    sent = timeout.told(action, sent, limits.per_try, left)
                head = _numbered(sent, self.attempts) if self.host.attempt_count else sent
                try_deadline = now + limits.per_try if limits.per_try else None
                host = state.hosts.get(found.key) or state.host(found.key)
                slots.begin(host)
                outcome = yield Attempt(
                    cluster.name,
                    found.address,
                    head,
                    cluster.upstream,
                    try_deadline,
                    deadline,
                    self.attempts,
                    secure(cluster, found) if cluster.transports else cluster.tls,
                    slots,
                    found.at,
                )
                outlier = cluster.outlier
                if outlier is not None:
                    self.learn(outlier, cluster, state, host, outcome)
                flag = self.decide(cluster, policy, slots, outcome)
                if flag is not None:
                    ended = yield self.last(outcome, head, deadline, flag)
                    if outlier is not None and isinstance(ended, BodyEnded) and ended.failed is not None:
                        self.learn(outlier, cluster, state, host, ended.failed, late=True)
                    return
                if isinstance(outcome, ResponseHead):
                    yield Discard()
                slots.end()
                assert policy is not None  # noqa: S101 - decide gives a flag if there is no policy
                if not (yield from self.wait(policy, deadline)):
                    return
                now = self.clock()

    def numbered(self, sent: RequestHead) -> RequestHead:
        """The request with the number of the try, if its host wants that."""
        return _numbered(sent, self.attempts) if self.host.attempt_count else sent

    def hedged(self, wishes: bool) -> bool:
        """Whether its tries are hedged; `wishes`: it has headers that were for the sidecar."""
        return hedge.wanted(self.action.hedged, self.head) if wishes else self.action.hedged

    def outgoing(self, limits: Timeouts, wishes: bool) -> RequestHead:
        """The request as it is sent; `wishes`: it has headers that were for the sidecar."""
        if limits is self.action.times and not self.action.hedged:
            sent = self.head
            if self.action.told:
                sent.extend(self.action.told)
        else:
            sent = _without_consumed(self.head) if wishes else self.head
            per_try = 0.0 if self.hedged(wishes) else limits.per_try
            sent = timeout.told(self.action, sent, per_try, limits.whole or None)
        return outgoing(sent, self.route, self.action, self.chosen) if self.route.edits else sent

    def decide(
        self, cluster: Cluster, policy: RetryPolicy | None, slots: Slots, outcome: Event
    ) -> str | None:
        """None: try again. Otherwise the flag with which the request ends."""
        if policy is None or not isinstance(outcome, (ResponseHead, Failed)):
            return "-"
        if not retry.wants_retry(policy, outcome):
            return "-"
        if self.attempts > policy.retries:
            return "URX"
        if not self.body.replayable():
            return "-"
        return None if slots.take_retry(cluster.upstream.limits) else "UO"

    def wait(self, policy: RetryPolicy, deadline: float | None) -> Generator[Action, Event, bool]:
        """Backs off; False: the time of the route ran out meanwhile, and the flow has ended."""
        if policy.avoid_previous_hosts or policy.leave_priorities_after:
            self.tried.append(self.endpoint)
        seconds = retry.back_off(policy, self.attempts, self.dice)
        left = None if deadline is None else deadline - self.clock()
        if left is None or seconds < left:
            yield Sleep(seconds)
            return True
        yield Sleep(max(0.0, left))
        failed = Failed(Failure.TIMED_OUT, "the time of the route ran out between two tries")
        yield Raise(failed, self.facts("UT", failed.detail))
        return False

    def last(self, outcome: Event, head: RequestHead, deadline: float | None, flag: str) -> Action:
        """Delivers the response, or raises the failure, of the last try."""
        if isinstance(outcome, Failed):
            if outcome.how is Failure.OVERFLOW:
                return self.reply(self.facts("UO", outcome.detail), _OVERFLOW, _OVERLOADED, self.attempts)
            own = _FLAGS[outcome.how]
            if self.hurried and outcome.how is Failure.TIMED_OUT:
                outcome = Failed(outcome.how, _HURRIED, outcome.connected)
            return Raise(outcome, self.facts(own if flag == "-" else f"{own},{flag}", outcome.detail))
        assert isinstance(outcome, ResponseHead)  # noqa: S101 - what an Attempt is answered with
        came = outcome.headers + self.cookies if self.cookies else outcome.headers
        headers = incoming(came, outcome.status, head, self.route, self.chosen)
        if self.host.tells_attempts:
            headers = tuple(_counted(headers, self.attempts))
        return Deliver(headers, self.facts(flag), deadline)

    def reply(
        self, facts: Facts, body: bytes = b"", headers: tuple[Header, ...] = (), number: int = 0
    ) -> Reply:
        """503: the request can't be sent. `number` of the try that it was to be; 0: of none."""
        edit: Edit = self.edit
        if number and self.host.tells_attempts:
            edit = lambda found: _counted(self.edit(found), number)  # noqa: E731 - once in a while
        return local_reply(self.head, 503, facts, body, headers, edit)

    def edit(self, headers: Iterable[Header]) -> Iterable[Header]:
        """The headers of a reply of our own, as the route edits those of a response."""
        return incoming(headers, 0, self.head, self.route, self.chosen)

    def learn(
        self,
        policy: OutlierPolicy,
        cluster: Cluster,
        state: ClusterState,
        host: HostState,
        outcome: Event,
        late: bool = False,
    ) -> None:
        """Tells outlier detection of the endpoint tried last; `late`: a second time. That the caller's time
        ran out, whoever it is, says nothing of an endpoint that is as fast as its route allows.
        """
        grpc = is_grpc(self.head)
        if isinstance(outcome, ResponseHead):
            if policy.plain and not grpc and outcome.status < 500:
                end_row(host)
                return
        elif not isinstance(outcome, Failed):
            return
        if self.hurried and isinstance(outcome, Failed) and outcome.how is Failure.TIMED_OUT:
            return

        def size() -> int:
            listed = cluster.inline or self.view.endpoints.get(cluster.name)
            return listed.size if listed else len(state.hosts)

        key, clock, dice = self.endpoint, self.clock, self.dice
        learn(policy, state, key, host, outcome, size, clock, dice, grpc=grpc, late=late)

    def key(self, sent: RequestHead) -> int | None:
        """What decides the endpoint, of a cluster that sends each key to one."""
        key, self.cookies = key_of(self.action.hashing, sent, self.ledger.address, self.dice)
        return key

    def pick(
        self,
        cluster: Cluster,
        state: ClusterState,
        now: float,
        policy: RetryPolicy | None,
        key: int | None = None,
    ) -> Endpoint | None:
        """An endpoint of the cluster, if possible not one that was tried."""
        endpoints = cluster.inline or self.view.endpoints.get(cluster.name)
        if endpoints is None:
            return self.unlisted(cluster, state, now)
        if policy is None or not self.tried:
            return pick(cluster, endpoints, state, now, self.dice, key=key)
        more = policy.host_selection_attempts if policy.avoid_previous_hosts else 0
        again = Retry(self.tried, more, policy.leave_priorities_after)
        return pick(cluster, endpoints, state, now, self.dice, again, key)

    def unlisted(self, cluster: Cluster, state: ClusterState, now: float) -> Endpoint | None:
        """The endpoint of a cluster that lists none."""
        match cluster.resolution:
            case Resolution.ORIGINAL:
                named = Endpoint(*self.original)
            case Resolution.DYNAMIC:
                named = Endpoint(*named_address(self.head.authority, cluster.tls is not None))
            case _:
                return None
        return unlisted(cluster, named, state, now, self.dice)

    def find(self, name: str) -> tuple[Cluster, Endpoint] | None:
        """A cluster by name and one of its endpoints, for a mirror."""
        cluster = self.view.clusters.get(name)
        if cluster is None:
            return None
        endpoint = self.pick(cluster, self.ledger.cluster(name), self.clock(), None)
        return None if endpoint is None else (cluster, endpoint)

    def facts(self, flag: str = "-", detail: str = "") -> Facts:
        """What is told of this request now."""
        route = self.route
        origin = route.origin
        return Facts(
            route.name,
            origin.document,
            origin.source,
            self.chosen.name,
            self.endpoint,
            self.attempts,
            flag,
            detail,
            self.version,
        )


def _add_sidecar_headers(head: RequestHead, ledger: Ledger, dice: Dice) -> None:
    index = head.index
    added: list[Header] = []
    if b"x-forwarded-proto" not in index:
        added.append(
            _HTTP if head.scheme == "http" else (b"x-forwarded-proto", head.scheme.encode("latin-1"))
        )
    if b"x-request-id" not in index:
        added.append((b"x-request-id", ledger.request_id(dice)))
    if added:
        head.extend(added)


def _without_consumed(head: RequestHead) -> RequestHead:
    headers = [header for header in head.headers if header[0].lower() not in _CONSUMED]
    return RequestHead(head.method, head.scheme, head.authority, head.path, headers)


def _numbered(head: RequestHead, attempt: int) -> RequestHead:
    return head.plus(_FIRST if attempt == 1 else ((_ATTEMPTS, b"%d" % attempt),))


def _counted(headers: Iterable[Header], attempts: int) -> list[Header]:
    """After all edits, which it overwrites (Envoy)."""
    return [*(one for one in headers if one[0].lower() != _ATTEMPTS), (_ATTEMPTS, b"%d" % attempts)]
