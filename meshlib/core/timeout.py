"""How long a request and each of its tries may take, with the application's own wishes.

Rules (Envoy, FilterUtility::finalTimeout): x-envoy-upstream-rq-timeout-ms stands for the route's time,
x-envoy-upstream-rq-per-try-timeout-ms for the try's; both stop here. A try's time that is not
shorter than the whole has no effect. The next service is told in x-envoy-expected-rq-timeout-ms
what is left to a try, and in grpc-timeout too if the route looks at that one (max_grpc_timeout).
"""

from meshlib.core.numbers import number
from meshlib.core.request import RequestHead
from meshlib.core.route.forward import is_grpc, timeouts
from meshlib.core.route.rule import EXPECTED, Forward, Timeouts, expected

WHOLE = b"x-envoy-upstream-rq-timeout-ms"
PER_TRY = b"x-envoy-upstream-rq-per-try-timeout-ms"
GRPC = b"grpc-timeout"
_GRPC_UNITS = ((b"m", 1), (b"S", 1000), (b"M", 60_000), (b"H", 3_600_000))
"""With how many milliseconds each has; a number has 8 digits at most."""
CONSUMED = frozenset((WHOLE, PER_TRY, b"x-envoy-upstream-rq-timeout-alt-response"))


def effective(forward: Forward, head: RequestHead, caller: float | None) -> Timeouts:
    """The times that count; `caller` (seconds) is the application's own bound, None: it has none."""
    made = timeouts(forward, head)
    whole, per_try = made.whole, made.per_try
    wanted, wanted_per_try = head.header(WHOLE), head.header(PER_TRY)
    if wanted is not None or wanted_per_try is not None:
        whole = _milliseconds(wanted, whole)
        own = forward.retry.per_try_timeout if forward.retry is not None else 0.0
        per_try = _milliseconds(wanted_per_try, own)
    if caller is not None and (not whole or caller < whole):
        whole = caller
    return Timeouts(whole, 0.0 if whole and per_try >= whole else per_try)


def _milliseconds(value: bytes | None, otherwise: float) -> float:
    found = number(value, 10**15)
    return otherwise if found is None else found / 1000


def told(forward: Forward, head: RequestHead, per_try: float, left: float | None) -> RequestHead:
    """The head with what the next service is told of its time; `left` as for `expected`."""
    value = expected(per_try, left)
    if value is None:
        return head
    made = [(EXPECTED, value)]
    if forward.max_grpc_timeout is not None and is_grpc(head):
        made.append((GRPC, _grpc(int(value))))
    if EXPECTED not in head.index and (len(made) == 1 or GRPC not in head.index):
        return head.plus(made)
    names = {name for name, _ in made}
    headers = [header for header in head.headers if header[0].lower() not in names] + made
    return RequestHead(head.method, head.scheme, head.authority, head.path, headers)


def _grpc(milliseconds: int) -> bytes:
    for unit, size in _GRPC_UNITS:
        if milliseconds // size < 10**8:
            return b"%d%s" % (milliseconds // size, unit)
    return b"99999999H"
