"""What is understood of an Envoy's log, and what is handed on of it."""

import asyncio

import pytest

from meshlib.agent.log import FORGOTTEN_SECONDS, Log, Told

IN_USE = "cannot bind '0.0.0.0:80': Address already in use"


def line(text: str, level: str = "warning", component: str = "upstream") -> str:
    return f"[2026-11-29 19:02:21.008][27079][{level}][{component}] [source/common/a.cc:89] {text}"


class Heard:
    def __init__(self) -> None:
        self.now, self.told, self.handed = 0.0, list[Told](), list[str]()
        self.log = Log(self.told.append, self.handed.append, lambda: self.now)

    def refuse(self, name: str = "::_80", why: str = IN_USE) -> None:
        self.log.hear(
            line(f"listener '{name}' failed to bind or apply socket options: {why}", "error", "config")
        )
        self.log.hear(line(f"lds: listener '{name}' config rejected: {why}"))
        for way in ("delta", "gRPC"):
            type_url = "type.googleapis.com/envoy.config.listener.v3.Listener"
            text = f"{way} config for {type_url} rejected: Error adding/updating listener(s) {name}: {why}"
            self.log.hear(line(text, component="config"))
            self.log.hear("")

    def take(self, name: str = "::_80") -> None:
        self.log.hear(line(f"lds: add/update listener '{name}'", "info"))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_refusal_is_told_once_and_once_more_when_it_is_over(heard: Heard) -> None:
    for _ in range(3):
        heard.refuse()
        heard.now += 5
    assert heard.log.refused("::_80") == IN_USE
    heard.take()
    heard.take()
    assert heard.told == [Told("::_80", IN_USE), Told("::_80", "")]
    assert heard.log.refused("::_80") == ""
    assert heard.handed == []


def test_another_reason_is_told(heard: Heard) -> None:
    heard.refuse()
    heard.refuse(why="no such filter")
    heard.refuse("::_90")
    assert heard.told == [Told("::_80", IN_USE), Told("::_80", "no such filter"), Told("::_90", IN_USE)]


def test_what_was_not_heard_of_for_long_is_told_anew(heard: Heard) -> None:
    heard.refuse()
    heard.now += FORGOTTEN_SECONDS
    assert heard.log.refused("::_80") == ""
    heard.refuse()
    assert len(heard.told) == 2


def test_one_that_is_removed_is_no_more_refused_and_nothing_is_told(heard: Heard) -> None:
    heard.refuse()
    heard.log.hear(line("lds: remove listener '::_80'", "info"))
    heard.take()
    assert heard.told == [Told("::_80", IN_USE)]


def test_a_secret_is_told_once(heard: Heard) -> None:
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    for way in ("delta", "gRPC", "delta"):
        heard.log.hear(line(f"{way} config for {kind} rejected: Failed to load", component="config"))
    assert heard.told == [Told("", "Failed to load")]
    assert heard.handed == []


def test_all_else_is_handed_on(heard: Heard) -> None:
    heard.refuse()
    said = [
        "no prefix",
        line("cds: 3 clusters", "warning"),
        line("info elsewhere", "info", "main"),
        "its second line",
    ]
    for each in said:
        heard.log.hear(each)
    heard.log.hear(line("cds: add 3 cluster(s), remove 1 cluster(s)", "info"))
    heard.log.hear("of the same")
    assert heard.handed == [f"{each}\n" for each in said[1:]]  # the first belongs to what was left out


def test_of_a_workload(heard: Heard) -> None:
    heard.refuse("a/inbound")
    assert (heard.log.refused_of("a"), heard.log.refused_of("b"), heard.log.refused_of("")) == (
        IN_USE,
        "",
        "",
    )


async def test_it_is_read_to_its_end_however_it_comes(heard: Heard) -> None:
    stream = asyncio.StreamReader()
    whole = f"\xff{line('one', 'error', 'main')}\n".encode("latin-1") + b"x" * 200_000 + b"\nlast"
    for start in range(0, len(whole), 70_001):
        stream.feed_data(whole[start : start + 70_001])
    stream.feed_eof()
    await heard.log.follow(stream)
    assert "one" in heard.handed[0]
    assert heard.handed[-1] == "last\n"
    assert sum(map(len, heard.handed[1:-1])) >= 200_000
