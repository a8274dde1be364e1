"""A mesh whose upstreams a test scripts: see `meshlib.testing`.

It is a `Mesh` like any other: rules are compiled to xDS, decoded and decided as they are in production; only
what sends attempts (`network`), the clock and the dice are others.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.core.ledger import Ledger
from meshlib.core.request import Dice as AnyDice
from meshlib.core.request import Peer
from meshlib.core.view import View
from meshlib.dataplane.mesh import Mesh
from meshlib.local import LocalSource
from meshlib.testing.answers import checked
from meshlib.testing.calls import Call, UnexpectedCall, matching, spelled, told
from meshlib.testing.clock import Clock, Duration, seconds_of
from meshlib.testing.dice import Dice
from meshlib.testing.holds import Hold
from meshlib.testing.network import network
from meshlib.testing.rules import Fault, http_fault
from meshlib.testing.stage import Stage
from meshlib.testing.upstreams import Upstream
from meshlib.xds.node import Locality


class _Ledger(Ledger):
    """Rolls no dice for a request's id: those that a test loads are for decisions."""

    def request_id(self, dice: AnyDice) -> bytes:
        """A number, in the form of a UUID."""
        return b"00000000-0000-4000-8000-%012x" % next(self._number)


class ScriptedMesh(Mesh):
    """A mesh without a network. In `with` it is the process's default one, too."""

    __test__ = False

    clock: Clock
    dice: Dice

    def __init__(self, *rules: str | Path, root: str | Path = ".", seed: int = 0, **settings: Any) -> None:
        """`rules` are applied in order, see `apply`; `root`: where their paths begin; `seed`: of the dice.

        `settings` are those of `meshlib.connect` that say who the workload under test is: `namespace`,
        `labels`, `service`, `locality`, `service_account`, `forward_headers`, … The environment has no say.
        ConfigError: rules or settings can't be used.
        """
        if "control" in settings:
            raise TypeError("control: the rules of a scripted mesh are given to it, as texts or paths")
        who = bootstrap({}, control=Path("meshlib.testing"), **{"state_dir": "", **settings})
        self._root = Path(root)
        self._default_before: Any = None
        self._stage = stage = Stage(who.namespace, Clock(), Dice(seed))
        source = partial(LocalSource, control=stage.rules)
        super().__init__(who, source, network=network(stage), clock=stage.clock, dice=stage.dice)
        self._ledger = _Ledger()
        try:
            self.apply(*rules)
        except BaseException:
            self.close()
            raise

    @property
    def unexpected(self) -> list[UnexpectedCall]:
        """Calls that nobody served. Clear it in a test that means to make them."""
        return self._stage.unexpected

    @property
    def state(self) -> str:
        """For people."""
        ended = "closed; " if self.closed else ""
        documents, names = len(self._stage.rules.documents), ", ".join(self._stage.upstreams.names())
        return f"{ended}{documents} documents, serves {names or 'nobody'}, {len(self._stage.calls)} calls"

    def __repr__(self) -> str:
        return f"<ScriptedMesh {self.state}>"

    def __enter__(self) -> "ScriptedMesh":
        shared = meshlib._shared  # noqa: SLF001 - the default is put back afterwards
        self._default_before = shared.get("mesh")
        shared["mesh"] = self
        return self

    def __exit__(self, *_: object) -> None:
        shared, before = meshlib._shared, self._default_before  # noqa: SLF001
        if shared.get("mesh") is self:
            shared.pop("mesh")
            if before is not None:
                shared["mesh"] = before
        self.close()

    def close(self) -> None:
        """Lets go what is held; later calls raise Closed."""
        for hold in self._stage.holds:
            hold.release()
        super().close()

    def prepare(self, name: str) -> View:
        """The view, once it says what to do with requests to the target."""
        with self.clock.calling():
            return super().prepare(name)

    # What happens

    def apply(self, *rules: str | Path) -> None:
        """Puts rules in force: YAML, or the path of a file or folder of it. A document replaces the one of
        its kind and name. ConfigError: something is refused; what was in force stays.
        """
        for each in rules:
            self._stage.rules.apply(each, self._root)

    def serve(
        self,
        service: str,
        *answers: Any,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        endpoints: int = 1,
        locality: str = "",
        weight: int = 1,
        port: int | None = None,
        **response: Any,
    ) -> Upstream:
        """Lets a service answer: `answers` one after the other, the last one for good; none: 200.

        An answer is a status (with `json`, `text`, `content`, `headers`, `delay`, `breaks` of `Response`
        beside it), a Response, an OSError, a Failure, or a function of the `Call` that gives or raises one.

        `version` or `labels` say whose answers these are: of the endpoints with those labels, of which there
        are `endpoints`, in `locality` (`region/zone/subzone`), each of `weight`. Without labels they are of
        every subset that is not served otherwise. A second `serve` of equal labels replaces the first.
        `port`: the only one of a service that no rule lists; not given: whichever is asked for.
        """
        if endpoints < 0 or not 1 <= weight <= 128 * 1024:
            raise ValueError(
                f"found {endpoints} endpoints of weight {weight}; allowed are 0 or more, of 1 or more"
            )
        carried = {**(labels or {}), **({"version": version} if version is not None else {})}
        found = self._stage.upstreams.put(service, carried, endpoints)
        found.answer(*answers, **response)
        found.locality, found.weight, found.port = Locality.parse(locality), weight, port
        self._stage.rules.changed()
        return found

    def fault(
        self,
        service: str,
        *,
        abort: int | str | None = None,
        delay: Duration | None = None,
        answer: Any = None,
        percent: float = 100.0,
        subset: str | None = None,
    ) -> Fault:
        """Breaks `percent` of the requests to a service, or to a subset of it, until it is healed.

        `abort` (an HTTP status, or a gRPC one by name) and `delay` are what a VirtualService's `fault` does,
        on the way out: an abort is sent nowhere and not tried again. `answer` is what the upstream answers
        instead of what is scripted, as of `serve`: that is tried again, and ejects endpoints. Of several the
        last one counts.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"found percent={percent!r}; allowed is 0 to 100")
        message = http_fault(abort, None if delay is None else seconds_of(delay), percent)
        if message is None and answer is None:
            raise TypeError("a fault is an abort, a delay or an answer")
        answers = None if answer is None else (checked(answer), percent)
        made = Fault(self._stage.rules, service, subset, message, answers)
        self._stage.rules.put(made)
        return made

    def heal(self, service: str | None = None) -> None:
        """Ends the faults of a service; None: all."""
        rules, full = self._stage.rules, self._stage.upstreams.full
        rules.heal([one for one in rules.faults if service is None or full(one.service) == full(service)])

    def hold(self, service: str, **which: Any) -> Hold:
        """Holds back what a service answers, until it is released; `which` as of `calls`."""
        host = self._stage.upstreams.full(service)
        made = Hold(lambda call: call.host == host and bool(matching([call], which)), service, self.clock)
        self._stage.holds.append(made)
        return made

    def peer(self, service_account: str = "", namespace: str = "", port: int = 80) -> Peer:
        """A caller of the application under test, as a server would show it to the mesh's middleware: by that
        account's certificate, or in plain text, at the workload's `port`. WSGI: `environ["meshlib.peer"]`,
        ASGI: `scope["extensions"]["meshlib"]["peer"]`.
        """
        here = "198.18.0.0"
        if not service_account:
            return Peer((here, 1), (here, port))
        space = namespace or self.bootstrap.namespace
        principal = f"spiffe://{self._stage.rules.trust_domain}/ns/{space}/sa/{service_account}"
        return Peer((here, 1), (here, port), principal, tls=True)

    # What happened

    def calls(self, service: str | None = None, **which: Any) -> list[Call]:
        """What upstreams were sent, in order: each try of a request, and each copy. `which`: only those of a
        `method`, `path` (with or without its query), `subset`, `port`, `headers` (at least these), `json`,
        `content`, `text`, `labels`, `endpoint`, `attempt`, `mirrored`, `authority`, `outcome`.
        """
        host = None if service is None else self._stage.upstreams.full(service)
        return matching([call for call in self._stage.calls if host in (None, call.host)], which)

    def assert_called(self, service: str, times: int | None = None, **which: Any) -> None:
        """AssertionError unless a service was called that often (None: at all); `which` as of `calls`."""
        __tracebackhide__ = True
        found = len(self.calls(service, **which))
        if found != times if times is not None else not found:
            raise AssertionError(self._told(service, which, spelled(times)))

    def assert_not_called(self, service: str, **which: Any) -> None:
        """AssertionError if a service was called; `which` as of `calls`."""
        __tracebackhide__ = True
        if self.calls(service, **which):
            raise AssertionError(self._told(service, which, "never"))

    def assert_nothing_unexpected(self) -> None:
        """UnexpectedCall if somebody called what nobody serves, whatever became of the error then."""
        if self.unexpected:
            raise self.unexpected[0]

    def _told(self, service: str, which: Mapping[str, Any], times: str) -> str:
        others = sorted({call.service for call in self._stage.calls})
        return told(service, self.calls(service), which, times, others)
