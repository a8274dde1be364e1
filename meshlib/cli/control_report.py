"""What `meshlib control` prints while it serves: what was loaded, what changed, who came and went.

Calm: a line for each change of the documents, with the time that it took; problems once, when they
appear, and once more when they are gone; many servers or clients at once are one line.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from rich.console import Console

from meshlib.cli.foreign import escape
from meshlib.control.built import Build, Built
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.registration import Registration
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.sources.source import Loaded
from meshlib.control.status import Notes, no_notes

FEW = 5
"""Up to so many of a kind are named one by one."""

_MARKS = {Severity.ERROR: "[red]✗[/]", Severity.WARNING: "[yellow]![/]"}

Key = tuple[str, str, str]


class Report:
    """Prints to `console`; it is told of each configuration and looks at the hub now and then."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._documents: dict[Key, AnyDocument] | None = None
        self._read: dict[Problem, None] = {}
        self._analysed: dict[Problem, None] = {}
        self._servers: Mapping[str, Registration] = {}
        self._clients: dict[int, str] = {}
        self._refusals: set[str] = set()
        self._notes: set[str] = set()
        self._pushed: float | None = None

    def built(
        self,
        documents: Iterable[AnyDocument],
        registrations: tuple[Registration, ...],
        problems: Iterable[Problem],
        seconds: float,
    ) -> None:
        """A configuration was made of these in that time and is about to be served."""
        self._of_documents({document.key: document for document in documents}, seconds)
        self._of_problems(_told(problems), self._analysed)
        self._of_servers({one.id: one for one in registrations})

    def analysed(self, problems: Iterable[Problem]) -> None:
        """What the analyses found between the documents of the newest configuration."""
        self._of_problems(self._read, _told(problems))

    def look(self, hub: Hub, notes: Notes = no_notes) -> None:
        """Tells of clients that came, left, refused, or all have the newest configuration, and what they
        do not get, by `notes`.
        """
        known = {c.number: c for c in hub.connections if c.stream.client is not None}
        came = [who(c) for number, c in known.items() if number not in self._clients]
        left = [name for number, name in self._clients.items() if number not in known]
        self._clients = {number: self._clients.get(number) or who(c) for number, c in known.items()}
        self._line("client connected", "clients connected", came, "[green]+[/]")
        self._line("client left", "clients left", left, "[yellow]-[/]")
        self._of_refusals(known.values())
        self._of_notes(known.values(), notes)
        self._of_push(known.values())

    def _of_documents(self, now: dict[Key, AnyDocument], seconds: float) -> None:
        before, self._documents = self._documents, now
        took = f"[dim]in {seconds * 1000:.0f} ms[/]"
        if before is None:
            kinds = Counter(document.kind for document in now.values())
            each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            number = f"{len(now)} document{'s' * (len(now) != 1)}"
            self._print(f"loaded [bold]{number}[/]" + (f": {each}" if each else ""))
            return
        changes = [
            *(("new", d) for key, d in now.items() if key not in before),
            *(("changed", d) for key, d in now.items() if key in before and _differs(before[key], d)),
            *(("gone", d) for key, d in before.items() if key not in now),
        ]
        if not changes:
            return
        for what, document in changes[:FEW]:
            self._print(f"[cyan]{what}[/] {escape(document.title)} [dim]({escape(document.source())})[/]")
        if len(changes) > FEW:
            self._print(f"… and {len(changes) - FEW} more")
        self._print(f"[green]configuration built[/] {took}")
        self._pushed = self._clock()

    def _of_problems(self, read: dict[Problem, None], analysed: dict[Problem, None]) -> None:
        before, now = {**self._read, **self._analysed}, {**read, **analysed}
        self._read, self._analysed = read, analysed
        new = [problem for problem in now if problem not in before]
        for problem in new:
            self._print(f"{_MARKS[problem.severity]} {escape(str(problem))}")
        over = [problem for problem in before if problem not in now]
        files = {problem.file for problem in now} | {document.file for document in self._served()}
        gone = sum(bool(problem.file) and problem.file not in files for problem in over)
        fixed = len(over) - gone
        if any(problem.severity is Severity.ERROR for problem in new):
            self._print("[dim]what is broken keeps its last good state[/]")
        elif not new:
            if fixed:
                self._print(f"[green]✓[/] {fixed} problem{'s' * (fixed != 1)} fixed")
            if gone:
                self._print(f"{gone} problem{'s' * (gone != 1)} gone with what was in the file")

    def _served(self) -> Iterable[AnyDocument]:
        return (self._documents or {}).values()

    def _of_servers(self, now: dict[str, Registration]) -> None:
        before, self._servers = self._servers, now
        joined = [server(one) for key, one in now.items() if key not in before]
        draining = [
            server(one)
            for key, one in now.items()
            if one.draining and key in before and not before[key].draining
        ]
        left = [server(one) for key, one in before.items() if key not in now]
        self._line("server joined", "servers joined", joined, "[green]+[/]")
        self._line("server drains", "servers drain", draining, "[yellow]~[/]")
        self._line("server left", "servers left", left, "[yellow]-[/]")

    def _of_refusals(self, connections: Iterable[Connection]) -> None:
        now = {
            f"{who(c)} refuses {kind.short}: {of.error}"
            for c in connections
            for kind, of in c.stream.subscriptions.items()
            if of.error
        }
        for text in sorted(now - self._refusals):
            self._print(f"[red]✗[/] {escape(text)}")
        self._refusals = now

    def _of_notes(self, connections: Iterable[Connection], notes: Notes) -> None:
        now = {
            f"{who(c)}: {note}"
            for c in connections
            for note in (notes(c.stream.client, c.listeners) if c.stream.client is not None else ())
        }
        for text in sorted(now - self._notes):
            self._print(f"[yellow]![/] {escape(text)}")
        self._notes = now

    def _of_push(self, connections: Iterable[Connection]) -> None:
        """After a change: once every client answered, how long that took."""
        waiting = list(connections)
        if self._pushed is None or any(c.behind_since is not None for c in waiting):
            return
        took, self._pushed = self._clock() - self._pushed, None
        if waiting:
            count = f"{len(waiting)} client{'s' * (len(waiting) != 1)}"
            self._print(f"[green]✓[/] in force at {count} [dim]after {took * 1000:.0f} ms[/]")

    def _line(self, one: str, many: str, names: list[str], mark: str) -> None:
        if len(names) > FEW:
            self._print(f"{mark} {len(names)} {many}")
            return
        for name in names:
            self._print(f"{mark} {one}: {escape(name)}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def reported(report: Report, build: Build) -> Build:
    """`build`, with each configuration that it makes told to `report`."""

    def make(
        loaded: Loaded, registrations: tuple[Registration, ...], version: str, roots_pem: bytes
    ) -> Built:
        started = time.perf_counter()
        made = build(loaded, registrations, version, roots_pem)
        took = time.perf_counter() - started
        report.built(loaded.documents, registrations, (*loaded.problems, *made.problems), took)
        return made if made.analyse is None else replace(made, analyse=told(made.analyse))

    def told(analyse: Callable[[], tuple[Problem, ...]]) -> Callable[[], tuple[Problem, ...]]:
        def found() -> tuple[Problem, ...]:
            problems = analyse()
            report.analysed(problems)
            return problems

        return found

    return make


def _told(problems: Iterable[Problem]) -> dict[Problem, None]:
    return dict.fromkeys(problem for problem in problems if problem.severity is not Severity.INFO)


def who(connection: Connection) -> str:
    """`default/bookinfo-productpage (meshlib)`."""
    client = connection.stream.client
    return f"{client.namespace}/{client.service_account} ({client.flavour.value})" if client else "?"


def server(one: Registration) -> str:
    """`default/bookinfo-reviews at 127.0.0.1, http 9080 (app=reviews, version=v1)`."""
    ports = ", ".join(f"{name} {port}" for name, port in one.ports)
    labels = ", ".join(f"{name}={value}" for name, value in one.labels)
    return f"{one.namespace}/{one.service_account} at {one.address}, {ports} ({labels})"


def _differs(one: AnyDocument, other: AnyDocument) -> bool:
    return one is not other and (not one.fingerprint or one.fingerprint != other.fingerprint)
