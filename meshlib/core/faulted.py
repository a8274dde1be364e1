"""A request that a fault concerns: before anything else is done with it, it is delayed, or answered.

Rules (Envoy, whose fault filter stands before the router):

- Delay first, then abort; an abort is not tried again, and goes before a redirect or an answer of the rule.
- The time of the route begins after the delay; a caller who waits for a limited time waits all the while.
- Whatever becomes of a request that was delayed, its flags begin with DI.
"""

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

from meshlib.core.actions import Deliver, Event, Facts, Flow, Raise, Reply, Sleep, joined
from meshlib.core.fault import ABORTED, BODY, DELAYED, Fault
from meshlib.core.ledger import Ledger
from meshlib.core.local_reply import Edit, local_reply
from meshlib.core.request import Dice, Failed, Failure, RequestHead


class Active:
    """The place of one request among the active faults; it is given back once at the end of `with`."""

    __slots__ = ("_held", "_ledger")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held = False

    def take(self, most: int) -> bool:
        """Whether one more fault may be made; a request takes one place, however many faults it has."""
        if not self._held:
            if self._ledger.faults >= most:
                return False
            self._ledger.faults += 1
            self._held = True
        return True

    def __enter__(self) -> "Active":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            self._held = False
            self._ledger.faults -= 1


class Faulted(NamedTuple):
    """What is needed to do it. `facts` are told of the request, `edit` works on the headers of an abort."""

    fault: Fault
    head: RequestHead
    facts: Facts
    ledger: Ledger
    dice: Dice
    edit: Edit | None

    def run(self, onward: Callable[[float | None], Flow], caller_timeout: float | None) -> Flow:
        """The whole flow; `onward` is what is done with the request otherwise, in the time that is left."""
        fault, flag = self.fault, "-"
        with Active(self.ledger) as active:
            seconds = fault.delay_of(self.head, self.dice)
            if seconds and active.take(fault.max_active):
                flag = DELAYED
                if caller_timeout is not None and seconds >= caller_timeout:
                    yield Sleep(max(0.0, caller_timeout))
                    failed = Failed(Failure.TIMED_OUT, "the caller's time ran out during an injected delay")
                    yield Raise(failed, self.told(f"{flag},UT", failed.detail))
                    return
                yield Sleep(seconds)
                caller_timeout = None if caller_timeout is None else caller_timeout - seconds
            aborted = fault.abort_of(self.head, self.dice)
            if aborted is not None and active.take(fault.max_active):
                facts = self.told(joined(flag, ABORTED), f"injected fault of {_rule(self.facts)}")
                status, grpc = aborted
                yield local_reply(self.head, status, facts, BODY, edit=self.edit, grpc=grpc)
            else:
                yield from _flagged(onward(caller_timeout), flag)

    def told(self, flag: str, detail: str) -> Facts:
        """The facts, with that."""
        return self.facts._replace(flag=flag, detail=detail)


def _flagged(flow: Flow, flag: str) -> Flow:
    """The same flow; what is told of its end begins with that flag."""
    event: Event = None
    try:
        while True:
            try:
                action = flow.send(event)
            except StopIteration:
                return
            if isinstance(action, Deliver):
                action = action._replace(facts=_also(flag, action.facts))
            elif isinstance(action, (Reply, Raise)):
                action = replace(action, facts=_also(flag, action.facts))
            event = yield action
    finally:
        flow.close()


def _also(flag: str, facts: Facts) -> Facts:
    return facts._replace(flag=joined(flag, facts.flag))


def _rule(facts: Facts) -> str:
    return " ".join(filter(None, (facts.document, facts.source))) or f"route {facts.route}"
