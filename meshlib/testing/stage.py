"""What the network of a test plays on: who serves, by which rules, who is held, and what was called."""

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.testing.answers import Response, outcome
from meshlib.testing.calls import Call, UnexpectedCall
from meshlib.testing.clock import Clock
from meshlib.testing.dice import Dice
from meshlib.testing.holds import Hold
from meshlib.testing.rules import Rules
from meshlib.testing.upstreams import Upstream, Upstreams
from meshlib.xds.names import ClusterName, split_authority


class Stage:
    """That of one mesh."""

    def __init__(self, namespace: str, clock: Clock, dice: Dice) -> None:
        self.clock = clock
        self.dice = dice
        self.upstreams = Upstreams(namespace)
        self.rules = Rules(self.upstreams)
        self.holds: list[Hold] = []
        self.calls: list[Call] = []
        self.unexpected: list[UnexpectedCall] = []

    def __repr__(self) -> str:
        return f"<Stage: {len(self.calls)} calls>"

    def called(self, attempt: Attempt | Mirror, content: bytes) -> tuple[Call, Upstream]:
        """Records a call; who serves it. UnexpectedCall: nobody does."""
        head = attempt.head
        name = ClusterName.parse(attempt.cluster)
        if name is None or name.host.startswith("*"):  # it goes wherever the application said
            host, port = split_authority(head.authority, attempt.address[1])
            name = ClusterName(port, "", self.upstreams.full(host))
        served, labels = self.upstreams.find(name.host, attempt.address)
        call = Call(
            head,
            content,
            served.service if served else self.upstreams.short(name.host),
            name.host,
            name.port,
            name.subset,
            "{}:{}".format(*attempt.address),
            labels,
            attempt=1 if isinstance(attempt, Mirror) else attempt.number,
            mirrored=isinstance(attempt, Mirror),
            tls=attempt.tls is not None,
            at=self.clock(),
        )
        if served is None:
            error = UnexpectedCall(self._unexpected(call))
            self.unexpected.append(error)
            raise error
        self.calls.append(call)
        served.calls.append(call)
        return call, served

    def _unexpected(self, call: Call) -> str:
        what = f"{call.method} {call.scheme}://{call.authority}{call.path}"
        to = f"{call.service}:{call.port}{f', subset {call.subset}' if call.subset else ''}"
        names = ", ".join(self.upstreams.names()) or "nobody"
        copy = "a copy of " if call.mirrored else ""
        return (
            f"{copy}{what} went to {to}, which nobody serves in this test (served: {names}). "
            f'Say what it answers: mesh.serve("{call.service}", 200)'
        )

    def held(self, call: Call) -> list[Hold]:
        """Who holds a call now."""
        return [hold for hold in self.holds if hold.concerns(call)]

    def answer(self, call: Call, served: Upstream) -> Response | Failed:
        """What the upstream answers."""
        for fault in reversed(self.rules.faults):
            if fault.answers is None or not fault.concerns(call.host, call.subset):
                continue
            answer, percent = fault.answers
            if percent >= 100 or (percent > 0 and self.dice.random() * 100 < percent):
                return outcome(answer, call)
            break
        return served.script.next(call)
