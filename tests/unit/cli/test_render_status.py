"""A status as tables: who is up to date, who waits, who refused and why."""

from io import StringIO
from typing import Any

from rich.console import Console

from meshlib.cli.render_status import show_status

RESOURCES: dict[str, Any] = {
    "kind": "LDS",
    "names": ["reviews:9080"],
    "subscribed": 1,
    "sent": 3,
    "held": 2,
    "acked": "7.1",
    "nack": "",
    "nacked": "",
    "refused": [],
    "pending": False,
}
CLIENT: dict[str, Any] = {
    "id": "productpage-1",
    "namespace": "default",
    "service_account": "bookinfo-productpage",
    "behind_seconds": 0,
    "behind_versions": 0,
    "certificate": None,
    "token_left": None,
    "flavour": "meshlib",
    "notes": [],
    "kinds": [RESOURCES],
}
SERVER: dict[str, Any] = {
    "namespace": "default",
    "service_account": "bookinfo-reviews",
    "labels": {"version": "v1", "app": "reviews"},
    "address": "127.0.0.1",
    "ports": {"http": 7001},
    "draining": False,
}


def text(**found: Any) -> str:
    console = Console(width=160, no_color=True, file=StringIO())
    empty = {
        "version": "7.1",
        "clients": [],
        "registrations": [],
        "authority": None,
        "alarms": [],
        "errors": [],
        "warnings": [],
    }
    show_status(console, "127.0.0.1:15010", empty | found)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_gateway_is_shown_as_one_with_what_it_does_not_get() -> None:
    shown = text(clients=[CLIENT | {"flavour": "gateway", "notes": ["there is no Secret default/[b]"]}])
    assert "gateway productpage-1" in shown
    assert "note of productpage-1: there is no Secret default/[b]" in shown


def test_nobody_is_connected() -> None:
    assert text() == "control 127.0.0.1:15010, configuration 7.1\nno client is connected\n"


def test_a_client_that_is_up_to_date_and_a_server() -> None:
    shown = text(clients=[CLIENT], registrations=[SERVER, SERVER | {"draining": True}])
    assert "default/bookinfo-productpage" in shown
    assert "reviews:9080" in shown
    assert "up to date" in shown
    assert "app=reviews, version=v1" in shown
    assert "127.0.0.1:7001 http" in shown
    assert "healthy" in shown
    assert "draining" in shown


def test_a_refusal_is_told_with_its_text() -> None:
    shown = text(clients=[CLIENT | {"kinds": [RESOURCES | {"nack": "routes[0]: bad [regex]"}]}])
    assert "refused by productpage-1, LDS: routes[0]: bad [regex]" in shown


def test_how_far_behind() -> None:
    late = CLIENT | {"behind_seconds": 1.25, "behind_versions": 2}
    assert "2 behind, 1.2 s" in text(clients=[late])
    assert "waiting for its answer, 1.2 s" in text(
        clients=[late | {"kinds": [RESOURCES | {"pending": True}]}]
    )
    assert "nothing" in text(clients=[late | {"kinds": []}])


def test_many_names_are_counted() -> None:
    many = RESOURCES | {"names": [f"s{n}:80" for n in range(9)], "subscribed": 9}
    assert "s0:80, s1:80, s2:80, … 9 in all" in text(clients=[CLIENT | {"kinds": [many]}])


def test_errors_and_warnings_of_the_configuration() -> None:
    shown = text(errors=["a.yaml:3: spec: bad"], warnings=["b.yaml:4: old"])
    assert "error a.yaml:3: spec: bad\nwarning b.yaml:4: old\n" in shown


CERTIFICATE = {
    "root": "sha256:" + "ab" * 32,
    "end": 2e9,
    "left": 18 * 3600.0,
    "life": 24 * 3600.0,
    "health": "ok",
    "renewed": False,
    "alarm": False,
}


def certified(**changes: Any) -> str:
    client = CLIENT | {"certificate": CERTIFICATE | changes}
    return text(clients=[client], authority={"fingerprint": "sha256:" + "ab" * 32})


def test_when_a_certificate_ends_and_below_which_root_it_is() -> None:
    shown = certified()
    for words in ("18 h", "75% left", "sha256:abababababab… issues", "good"):
        assert words in shown
    assert "is being replaced" in certified(root="sha256:" + "cd" * 32)
    assert "should have been renewed" in certified(left=30_000.0, health="late")
    assert "renewed since" in certified(left=10_800.0, health="expiring", renewed=True)
    assert "3 h" in certified(left=10_800.0, health="expiring", alarm=True)
    assert "ends soon, and was not renewed" in certified(left=10_800.0, health="expiring", alarm=True)


def test_who_is_known_by_a_token_and_who_by_nothing() -> None:
    shown = text(clients=[CLIENT | {"token_left": 600.0}])
    assert "10 min" in shown
    assert "by token" in shown
    assert "certificates" not in text(clients=[CLIENT])


def test_alarms_are_told() -> None:
    assert "alarm the root ends in 9 days\n" in text(alarms=["the root ends in 9 days"])


def test_what_is_held_is_what_was_acknowledged() -> None:
    (row,) = [line for line in text(clients=[CLIENT]).splitlines() if "LDS" in line]
    assert row.split()[1:4] == ["LDS", "reviews:9080", "2"]


def test_a_refusal_can_draw_nothing_on_the_terminal() -> None:
    nack = "no \x1b[2J\nrefused by nobody"
    shown = text(clients=[CLIENT | {"id": "a\x1b]0;b\x07", "kinds": [RESOURCES | {"nack": nack}]}])
    assert "\x1b" not in shown
    assert r"refused by a\x1b]0;b\x07, LDS: no \x1b[2J\nrefused by nobody" in shown
