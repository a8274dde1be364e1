"""Outlier detection: an endpoint that keeps failing is ejected for a while.

Rules (Envoy, OutlierDetection):
* Counters of consecutive failures: any 5xx; gateway errors 502, 503, 504. Any other status sets them
  back. A failed connection and a reset count as 503, a timeout as 504.
* The n-th ejection lasts n times the base time, at most the longer of the base and the maximum. Each
  whole interval without ejection takes one off n.
* No ejection may raise the share of ejected endpoints above the maximum; the first one neither, unless
  the policy says so (`always_eject_one_host`).
* There are no timers: an ejection ends by the clock when somebody looks.
"""

from meshlib.core.balance.cluster import OutlierPolicy
from meshlib.core.ledger import ClusterState, HostState
from meshlib.core.request import Failed, Failure, Outcome

_TIMEOUTS = frozenset((Failure.TRY_TIMED_OUT, Failure.TIMED_OUT, Failure.CONNECT_TIMED_OUT))
_GRPC = {0: 200, 1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 10: 409, 12: 501, 14: 503, 16: 401}


def status_of(outcome: Outcome) -> int:
    """The HTTP status that an outcome counts as; a gRPC status in the headers counts as its equivalent."""
    if isinstance(outcome, Failed):
        return 504 if outcome.how in _TIMEOUTS else 503
    grpc = outcome.header(b"grpc-status")
    if grpc is not None and grpc.isdigit():
        return _GRPC.get(int(grpc), 500)
    return outcome.status


def learn(
    policy: OutlierPolicy, state: ClusterState, key: str, outcome: Outcome, size: int, now: float
) -> bool:
    """Counts an outcome of the endpoint `key`; True: it is ejected by that. `size`: of the cluster."""
    status = status_of(outcome)
    host = state.host(key)
    if status < 500:
        host.failures_5xx = host.failures_gateway = 0
        return False
    trips = False
    if 502 <= status <= 504:
        host.failures_gateway += 1
        if host.failures_gateway == policy.consecutive_gateway:
            host.failures_gateway = 0
            trips = True
    else:
        host.failures_gateway = 0
    host.failures_5xx += 1
    if host.failures_5xx == policy.consecutive_5xx:
        host.failures_5xx = 0
        trips = True
    return trips and _eject(policy, state, key, host, size, now)


def _eject(
    policy: OutlierPolicy, state: ClusterState, key: str, host: HostState, size: int, now: float
) -> bool:
    end_ejections(state, now)
    if key in state.ejected:
        return False
    already = len(state.ejected)
    one_anyway = policy.always_eject_one and not already
    if not one_anyway and (already + 1) * 100 > policy.max_ejection_percent * size:
        return False
    quiet = max(0.0, now - host.last_ejection)
    forgiven = int(quiet / policy.interval) if policy.interval > 0 else host.ejections
    host.ejections = max(0, host.ejections - forgiven) + 1
    lasts = min(policy.base_ejection * host.ejections, max(policy.base_ejection, policy.max_ejection))
    host.ejected_until = host.last_ejection = now + lasts
    state.ejected[key] = host
    state.wake = min(state.wake, host.ejected_until)
    state.plan = None
    return True


def end_ejections(state: ClusterState, now: float) -> None:
    """Takes endpoints whose time is over back in."""
    if now < state.wake:
        return
    for key, host in list(state.ejected.items()):
        if host.ejected_until is not None and host.ejected_until <= now:
            host.ejected_until = None
            state.ejected.pop(key, None)
    ends = [host.ejected_until for host in list(state.ejected.values()) if host.ejected_until is not None]
    state.wake = min(ends, default=float("inf"))
    state.plan = None
