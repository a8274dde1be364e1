"""What `meshlib control` prints: changes, problems once, who came and went."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from meshlib.cli.control_report import Report, reported
from meshlib.control.built import Built
from meshlib.control.istio.document import AnyDocument, Document
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.registration import Registration
from meshlib.control.sources.source import Loaded
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

BAD = Problem(
    Severity.ERROR, "IST0106", "no duration", "VirtualService default/a", "a.yaml", 8, found="'soon'"
)
OLD = Problem(Severity.WARNING, "IST0002", "an old spelling", file="b.yaml", line=3)
ONE = Registration("1", "default", "reviews", (("app", "reviews"),), "127.0.0.1", (("http", 7001),))


class Empty(BaseModel):
    """A spec without a field."""


class Screen:
    """A report and what it printed since the last look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.file = StringIO()
        self.report = Report(Console(file=self.file, no_color=True, width=40), lambda: self.now)

    def text(self) -> list[str]:
        said = self.file.getvalue().splitlines()
        self.file.seek(0)
        self.file.truncate()
        return said

    def built(
        self, documents: list[AnyDocument], *problems: Problem, servers: tuple[Registration, ...] = ()
    ) -> list[str]:
        self.report.built(documents, servers, problems, 0.012)
        return self.text()

    def look(self, *connections: Any) -> list[str]:
        self.report.look(SimpleNamespace(connections=connections))  # type: ignore[arg-type]
        return self.text()


def document(name: str, content: str = "1", kind: str = "VirtualService") -> AnyDocument:
    return Document(kind, "default", name, Empty(), file=f"{name}.yaml", line=2, fingerprint=content)


def connection(number: int, account: str = "caller", behind: float | None = None, nack: str = "") -> Any:
    stream = SimpleNamespace(
        client=Client(Flavour.MESHLIB, "default", account),
        subscriptions={Kind.LISTENER: SimpleNamespace(error=nack)},
    )
    return SimpleNamespace(number=number, stream=stream, behind_since=behind, listeners=frozenset())


def test_what_was_loaded() -> None:
    screen = Screen()
    said = screen.built([document("a"), document("b"), document("c", kind="Service")])
    assert said == ["loaded 3 documents: 1 Service, 2 VirtualService"]


def test_what_changed_and_when_it_is_in_force() -> None:
    screen = Screen()
    screen.built([document("a"), document("b")])
    assert screen.look(connection(1)) == ["+ client connected: default/caller (meshlib)"]
    said = screen.built([document("a", "2"), document("c")])
    assert said == [
        "new VirtualService default/c (c.yaml:2)",
        "changed VirtualService default/a (a.yaml:2)",
        "gone VirtualService default/b (b.yaml:2)",
        "configuration built in 12 ms",
    ]
    screen.now = 0.05
    assert screen.look(connection(1, behind=0.0)) == []
    screen.now = 0.15
    assert screen.look(connection(1)) == ["✓ in force at 1 client after 150 ms"]
    assert screen.look(connection(1)) == []


def test_same_content_is_no_change() -> None:
    screen = Screen()
    screen.built([document("a")])
    assert screen.built([document("a")]) == []


def test_many_changes_are_counted() -> None:
    screen = Screen()
    screen.built([])
    said = screen.built([document(f"d{n}") for n in range(8)])
    assert len(said) == 7
    assert said[5] == "… and 3 more"


def test_a_problem_is_told_once_and_when_it_is_gone() -> None:
    screen = Screen()
    assert screen.built([document("a"), document("b")], BAD, OLD)[1:] == [
        f"✗ {BAD}",
        f"! {OLD}",
        "what is broken keeps its last good state",
    ]
    assert screen.built([document("a"), document("b")], BAD, OLD) == []
    assert screen.built([document("a"), document("b")]) == ["✓ 2 problems fixed"]


def test_hints_are_left_to_check() -> None:
    assert len(Screen().built([], replace(OLD, severity=Severity.INFO))) == 1


def test_servers_join_drain_and_leave() -> None:
    screen = Screen()
    assert screen.built([], servers=(ONE,))[1:] == [
        "+ server joined: default/reviews at 127.0.0.1, http 7001 (app=reviews)"
    ]
    assert screen.built([], servers=(replace(ONE, draining=True),)) == [
        "~ server drains: default/reviews at 127.0.0.1, http 7001 (app=reviews)"
    ]
    assert screen.built([]) == ["- server left: default/reviews at 127.0.0.1, http 7001 (app=reviews)"]
    many = tuple(replace(ONE, id=str(number)) for number in range(200))
    assert screen.built([], servers=many) == ["+ 200 servers joined"]


def test_clients_leave_and_refuse() -> None:
    screen = Screen()
    screen.look(connection(1), connection(2, "other"))
    assert screen.look(connection(1, nack="routes[0]: [bad]")) == [
        "- client left: default/other (meshlib)",
        "✗ default/caller (meshlib) refuses LDS: routes[0]: [bad]",
    ]
    assert screen.look(connection(1, nack="routes[0]: [bad]")) == []
    assert screen.look(connection(1, "a\x1b[2J", nack="no\n✓ in force\x1b[2J")) == [
        r"✗ default/a\x1b[2J (meshlib) refuses LDS: no\n✓ in force\x1b[2J"
    ]


def test_a_stream_that_has_not_said_who_it_is_is_not_told() -> None:
    unknown = connection(1)
    unknown.stream.client = None
    assert Screen().look(unknown) == []


def test_a_build_is_reported_with_the_problems_of_both() -> None:
    screen = Screen()
    made = Built(compiler=None, problems=(OLD,))  # type: ignore[arg-type]
    build = reported(screen.report, lambda *_: made)
    assert build(Loaded((document("a"),), (BAD,)), (), "1.1", b"") is made
    said = screen.text()
    assert said[0].startswith("loaded 1 document")
    assert said[1:3] == [f"✗ {BAD}", f"! {OLD}"]


def test_what_the_analyses_find_is_told_when_they_have_found_it() -> None:
    screen = Screen()
    made = Built(compiler=None, analyse=lambda: (BAD,))  # type: ignore[arg-type]
    built = reported(screen.report, lambda *_: made)(Loaded((document("a"),), (OLD,)), (), "1.1", b"")
    assert f"✗ {BAD}" not in screen.text()
    assert built.analyse is not None
    assert built.analyse() == (BAD,)
    assert f"✗ {BAD}" in screen.text()


def test_a_problem_whose_file_holds_nothing_any_more_is_gone_not_fixed() -> None:
    screen = Screen()
    screen.built([document("b")], BAD)
    assert screen.built([document("b")]) == ["1 problem gone with what was in the file"]


def test_what_a_client_does_not_get_is_told_once() -> None:
    screen, client = Screen(), connection(1)
    hub: Any = SimpleNamespace(connections=[client])
    for _ in range(2):
        screen.report.look(hub, lambda *_: ["there is no Secret default/[a]"])
    assert screen.text() == [
        "+ client connected: default/caller (meshlib)",
        "! default/caller (meshlib): there is no Secret default/[a]",
    ]
    screen.report.look(hub)
    assert screen.text() == []
