"""What an inbound request hands on to the calls that are made for it, without a word of the application.

Rules:

- It travels in a context variable: every task and every thread that copies its context has it.
- Handed on are the headers by which traces are joined (W3C, B3, Jaeger's, Datadog's, and x-request-id),
  baggage, and those that the setting `forward_headers` names. A header that the application sets itself stays
  as it set it; what it adds to a call's baggage or trace state is its own business.
- The time that the caller still waits bounds the calls: a callee need not work for who has gone. It holds
  until the request is served: nobody waits for what goes on after that (a task, the messages of a WebSocket).
- A host outside of the mesh (one that it does not know) is told nothing but what joins traces.
- If the call has a span of its own, that says where it belongs, and not what came in.
"""

import functools
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from meshlib.core.caller import Caller
from meshlib.core.request import Header, RequestHead
from meshlib.core.route.rule import EXPECTED
from meshlib.dataplane.telemetry.propagation import OF_SPANS

TRACE_HEADERS = frozenset(
    (
        *(b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"b3"),
        *(b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags"),
        *(b"x-ot-span-context", b"uber-trace-id", b"x-cloud-trace-context", b"sw8", b"grpc-trace-bin"),
        *(b"x-datadog-trace-id", b"x-datadog-parent-id", b"x-datadog-sampling-priority"),
    )
)
"""One family of them is handed on whole, or not at all: they belong together."""
JOINING = TRACE_HEADERS - {b"baggage"}
"""What a host outside of the mesh is told."""
GRPC_TIMEOUT = b"grpc-timeout"
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_LONGEST = 365 * 86400.0
_MOST_BYTES = 16 * 1024
"""Of headers that are handed on."""


class Attachable(Protocol):
    """What is current while code runs for a request, besides what travels on: a span."""

    def attach(self) -> object:
        """Makes it current in this task or thread; gives what `detach` needs there."""
        ...

    def detach(self, token: object) -> None:
        """Makes current what was before."""
        ...


class Wait:
    """How long a caller waits. Copies of a context share it, so that its end is known to all of them."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until: float | None = until
        """When it stops waiting, on the monotonic clock; None: it has its answer."""

    def __repr__(self) -> str:
        return f"<Wait until {self.until}>"

    def end(self) -> None:
        """The request is served."""
        self.until = None


class Handed(NamedTuple):
    """What one inbound request hands on."""

    headers: tuple[Header, ...] = ()
    wait: Wait | None = None
    """None: its caller did not say how long it waits."""
    caller: Caller | None = None
    within: Attachable | None = None
    """The request's span; None: it has none."""

    def served(self) -> None:
        """The response was sent, or the handler has ended: nobody waits for what still goes on."""
        if self.wait is not None:
            self.wait.end()


_current: ContextVar[Handed | None] = ContextVar("meshlib_handed", default=None)


def handed(
    head: RequestHead,
    caller: Caller | None,
    forward: frozenset[bytes] = frozenset(),
    clock: Callable[[], float] = time.monotonic,
    within: Attachable | None = None,
) -> Handed:
    """What a request hands on; `forward`: further header names, in lower case; `within`: its span."""
    wanted = _wanted(forward)
    found: list[Header] = []
    if not wanted.isdisjoint(head.index):
        size = 0
        for name, value in head.headers:
            lower = name.lower()
            if lower in wanted:
                size += len(lower) + len(value)
                if size > _MOST_BYTES:
                    break
                found.append((lower, value))
    left = _time_left(head)
    return Handed(tuple(found), None if left is None else Wait(clock() + left), caller, within)


class entered:  # noqa: N801 - as contextlib's are, half of whose time a generator takes
    """Calls made in this block, and in what it starts, are made for that request."""

    __slots__ = ("_attached", "_token", "_what")

    def __init__(self, what: Handed) -> None:
        self._what = what

    def __enter__(self) -> None:
        what = self._what
        self._token = _current.set(what)
        self._attached = None if what.within is None else what.within.attach()

    def __exit__(self, *_: object) -> None:
        within = self._what.within
        if within is not None:
            within.detach(self._attached)
        _current.reset(self._token)


def current() -> Handed | None:
    """What the request hands on that is being served here; None: none is."""
    return _current.get()


def hand_on(head: RequestHead, inside: bool, *, traced: bool = False) -> None:
    """Adds to an outbound request what is handed on and it does not have itself. Its owner calls this.

    `inside`: whether it goes to a host that the mesh knows. `traced`: its head says already to which span
    it belongs.
    """
    what = _current.get()
    if what is None or not what.headers:
        return
    headers: Iterable[Header] = what.headers
    if not inside:
        headers = [one for one in headers if one[0] in JOINING]
    if traced:
        headers = [one for one in headers if one[0] not in OF_SPANS]
    head.extend(_joined(headers, head.index))


def time_left(clock: Callable[[], float] = time.monotonic) -> float | None:
    """Seconds that the caller waits yet, 0 or less: it has gone; None: it did not say, or has its answer."""
    what = _current.get()
    until = None if what is None or what.wait is None else what.wait.until
    return None if until is None else until - clock()


def _joined(headers: Iterable[Header], index: dict[bytes, bytes]) -> list[Header]:
    """Those that are not there yet; several of one name become one, as Envoy joins them."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in index:
            found[name] = found[name] + b"," + value if name in found else value
    return list(found.items())


@functools.cache
def _wanted(forward: frozenset[bytes]) -> frozenset[bytes]:
    """A process has few such sets; nearly always one."""
    return TRACE_HEADERS | forward


def _time_left(head: RequestHead) -> float | None:
    """Seconds that the caller waits for the whole answer, by its own word."""
    said = head.index.get(EXPECTED)
    if said is not None and said.isdigit() and len(said) < 12:
        return min(int(said) / 1000, _LONGEST) or None
    said = head.index.get(GRPC_TIMEOUT)
    # gRPC over HTTP/2: at most eight digits and a unit.
    if said is not None and 1 < len(said) <= 9 and said[:-1].isdigit() and said[-1:] in _UNITS:
        return min(int(said[:-1]) * _UNITS[said[-1:]], _LONGEST) or None
    return None
