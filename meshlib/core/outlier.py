"""Outlier detection: an endpoint that keeps failing is ejected for a while.

Rules (Envoy, OutlierDetection):
* A response counts as its status, or as its gRPC status if the request was gRPC. No connection and a reset
  count as 503, no response in time as 504; a time that ran out before there was a connection, or in the
  middle of a body, does not count, nor does one that was only the caller's (`outbound`).
* If failures are split, those that the process sees itself are counted apart: a connection made is a
  success there, as is a good response; no connection, a reset and a timeout are failures.
* In a row: any 5xx; gateway errors 502, 503, 504. Any other status sets them back. What an endpoint does
  while it is ejected counts, and all is forgotten when it returns.
* Once an interval: the successes of each endpoint against the others' mean, and its share of failures.
* The n-th ejection lasts n times the base time, at most the maximum, and jitter. It ends with the first
  interval after that; each further interval takes one off n.
* No ejection may raise the share of ejected endpoints above the maximum; the first one neither, unless
  the policy says so (`always_eject_one_host`).
* There are no timers: who looks first after the end of an interval does what was due then.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from meshlib.core.ledger import NEVER, ClusterState, HostState
from meshlib.core.outlier_policy import FailurePercentage, InARow, OutlierPolicy, SuccessRate
from meshlib.core.request import Dice, Failed, Failure, Outcome

_TIMEOUTS = frozenset((Failure.TRY_TIMED_OUT, Failure.TIMED_OUT))
_NOT_CONNECTED = frozenset((Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT))
_GRPC = {0: 200, 1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 10: 409, 12: 501, 14: 503, 16: 401}
_EARLY = 1e-6
"""Share of an interval by which arithmetic may miss its end."""


def watch(policy: OutlierPolicy | None, state: ClusterState, now: float) -> None:
    """That policy is in force. If it is another than before, what was learned for that one is forgotten."""
    if policy == state.outlier:
        state.outlier = policy
        return
    for host in list(state.hosts.values()):
        _forget(host)
        host.requests = host.successes = host.local_requests = host.local_successes = host.ejections = 0
    state.ejected.clear()
    state.marked.clear()
    state.outlier, state.began, state.sweeps = policy, now, 0
    state.wake = NEVER if policy is None else now + policy.interval
    state.plan = None


def learn(
    policy: OutlierPolicy,
    state: ClusterState,
    key: str,
    host: HostState,
    outcome: Outcome,
    size: Callable[[], int],
    clock: Callable[[], float],
    dice: Dice,
    *,
    grpc: bool = False,
    late: bool = False,
    bare: bool = False,
) -> None:
    """Counts an outcome of the endpoint `key`, which is `host`, of a cluster of `size`. `grpc`: of a gRPC
    request; `late`: a failure after the head of the response, which was an outcome of its own; `bare`: of a
    connection that no request is sent on.
    """
    status = status_of(policy, outcome, grpc, late)
    if status is None:
        return
    failed = 500 <= status < 600
    if not failed and not policy.rates and not policy.split:
        end_row(host)
        return
    if policy is not state.outlier and policy != state.outlier:
        return  # a request of before
    now = clock()
    if now >= state.wake:
        sweep(state, size(), now, dice)

    def trips(row: InARow | None, count: int) -> bool:
        """Whether the row is full; then it begins anew, also if the endpoint is not ejected after all."""
        if row is None or count != row.count or key in state.ejected or state.hosts.get(key) is not host:
            return False
        _eject(policy, state, key, host, row.enforced, size(), now, dice)
        return True

    if policy.split and (_count_local(host, outcome, late) or bare):
        if trips(policy.consecutive_local, host.failures_local):
            host.failures_local = 0
        return
    host.requests += 1
    if not failed:
        host.successes += 1
        host.failures_5xx = host.failures_gateway = 0
        return
    host.failures_5xx += 1
    host.failures_gateway = host.failures_gateway + 1 if 502 <= status <= 504 else 0
    if trips(policy.consecutive_gateway, host.failures_gateway):
        host.failures_gateway = 0
    if trips(policy.consecutive_5xx, host.failures_5xx):
        host.failures_5xx = 0


def end_row(host: HostState) -> None:
    """A good response, where no more is counted (`plain`)."""
    host.failures_5xx = host.failures_gateway = 0


def _count_local(host: HostState, outcome: Outcome, late: bool) -> bool:
    """What the process saw itself of an outcome; True: that it failed, and no more is to be said of it."""
    failed = isinstance(outcome, Failed)
    if not late and not (isinstance(outcome, Failed) and outcome.how in _NOT_CONNECTED):
        host.local_requests += 1
        host.local_successes += 1
        host.failures_local = 0
    if failed:
        host.local_requests += 1
        host.failures_local += 1
    return failed


def status_of(policy: OutlierPolicy, outcome: Outcome, grpc: bool = False, late: bool = False) -> int | None:
    """The HTTP status that an outcome counts as; None: it does not count."""
    if isinstance(outcome, Failed):
        if outcome.how in _TIMEOUTS:
            return 504 if outcome.connected and not late else None
        return None if outcome.how is Failure.OVERFLOW else 503
    told = outcome.header(b"grpc-status") if grpc else None
    if told:
        return _GRPC.get(int(told), 500) if told.isdigit() else 500
    if policy.errors is None:
        return outcome.status
    if not policy.errors(outcome):
        return 200
    return outcome.status if 500 <= outcome.status < 600 else 500


def _eject(
    policy: OutlierPolicy,
    state: ClusterState,
    key: str,
    host: HostState,
    enforced: int,
    size: int,
    now: float,
    dice: Dice,
) -> None:
    already = len(state.ejected)
    one_anyway = policy.always_eject_one and not already
    if not one_anyway and (already + 1) * 100 > policy.max_ejection_percent * size:
        return
    if enforced < 100 and dice.random() * 100 >= enforced:
        return
    if host.ejections * policy.base_ejection < policy.max_ejection + policy.base_ejection:
        host.ejections += 1
    lasts = min(policy.base_ejection * host.ejections, policy.max_ejection)
    if policy.jitter:
        lasts += policy.jitter * dice.random()
    host.ejected_until = now + lasts
    state.ejected[key] = state.marked[key] = host
    state.plan = None


def sweep(state: ClusterState, size: int, now: float, dice: Dice) -> None:
    """Does what was due at the ends of intervals since the last look, of a cluster of `size`."""
    policy, due = state.outlier, state.wake
    if policy is None or now < due:
        return
    state.wake = NEVER  # nobody else begins
    first = state.sweeps + 1
    last = max(first, int((now - state.began) / policy.interval + _EARLY))
    try:
        # All that was counted belongs to the first interval: later ones were without a request.
        _end_first(policy, state, first, size, dice)
        if last > first:
            _end_further(policy, state, first, last)
    finally:
        if state.outlier is policy:
            state.sweeps = last
            state.wake = state.began + (last + 1) * policy.interval


def _end_first(policy: OutlierPolicy, state: ClusterState, number: int, size: int, dice: Dice) -> None:
    for key, host in list(state.ejected.items()):
        if _returns(policy, state, host) <= number:
            _return(state, key, host, number)
    if policy.rates:
        _judge(policy, state, size, state.began + number * policy.interval, dice)
    for key, host in list(state.marked.items()):
        if key not in state.ejected and host.returned < number:
            _forgive(state, key, host, 1)


def _end_further(policy: OutlierPolicy, state: ClusterState, first: int, last: int) -> None:
    for key, host in list(state.marked.items()):
        since = first
        if key in state.ejected:
            since = max(first + 1, _returns(policy, state, host))
            if since > last:
                continue
            _return(state, key, host, since)
        _forgive(state, key, host, last - since)


def _returns(policy: OutlierPolicy, state: ClusterState, host: HostState) -> int:
    """The number of the interval at whose end an endpoint returns."""
    return math.ceil((host.ejected_until - state.began) / policy.interval - _EARLY)


def _return(state: ClusterState, key: str, host: HostState, number: int) -> None:
    _forget(host)
    host.returned = number
    state.ejected.pop(key, None)
    state.plan = None


def _forget(host: HostState) -> None:
    host.failures_5xx = host.failures_gateway = host.failures_local = 0


def _forgive(state: ClusterState, key: str, host: HostState, times: int) -> None:
    host.ejections = max(0, host.ejections - times)
    if not host.ejections:
        state.marked.pop(key, None)


def _judge(policy: OutlierPolicy, state: ClusterState, size: int, now: float, dice: Dice) -> None:
    """Ejects those that were too bad in the interval that has ended."""
    outside: list[_Rated] = []
    inside: list[_Rated] = []
    for key, host in list(state.hosts.items()):
        if key not in state.ejected:
            if host.requests:
                rate = host.successes * 100.0 / host.requests
                outside.append(_Rated(key, host, host.requests, rate))
            if host.local_requests:
                rate = host.local_successes * 100.0 / host.local_requests
                inside.append(_Rated(key, host, host.local_requests, rate))
        host.requests = host.successes = host.local_requests = host.local_successes = 0
    for rated, mean, share in (
        (outside, policy.success_rate, policy.failure_percentage),
        (inside, policy.local_success_rate, policy.local_failure_percentage),
    ):
        found = [(each, mean.enforced) for each in _below_mean(mean, rated)] if mean is not None else []
        if share is not None:
            found += [(each, share.enforced) for each in _failing(share, rated)]
        for each, enforced in found:
            if each.key not in state.ejected:
                _eject(policy, state, each.key, each.host, enforced, size, now, dice)


class _Rated(NamedTuple):
    key: str
    host: HostState
    requests: int
    rate: float
    """Percent of them that succeeded."""


def _below_mean(detector: SuccessRate, rated: Sequence[_Rated]) -> list[_Rated]:
    valid = [each for each in rated if each.requests >= detector.requests]
    if not valid or len(valid) < detector.hosts:
        return []
    mean = sum(each.rate for each in valid) / len(valid)
    variance = sum((each.rate - mean) ** 2 for each in valid) / len(valid)
    threshold = mean - detector.deviations * math.sqrt(variance)
    return [each for each in valid if each.rate < threshold]


def _failing(detector: FailurePercentage, rated: Sequence[_Rated]) -> list[_Rated]:
    valid = [each for each in rated if each.requests >= detector.requests]
    if len(valid) < detector.hosts:
        return []
    return [each for each in valid if 100.0 - each.rate >= detector.percent]
