"""Dropped exchanges are ended on a thread, whoever noticed them and under whatever lock."""

import threading
from queue import SimpleQueue

import pytest

from meshlib.dataplane.http.dropped import Undertaker


def test_what_is_noted_before_the_thread_is_there_is_done_when_it_is() -> None:
    undertaker, done = Undertaker(), SimpleQueue[str]()
    undertaker.note(lambda: done.put(threading.current_thread().name))
    assert "not started" in repr(undertaker)
    for _ in range(2):
        undertaker.expect()
    assert done.get(timeout=10) == "meshlib-dropped"
    assert "at work" in repr(undertaker)


def test_one_that_fails_is_told_and_the_next_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    undertaker, done = Undertaker(), SimpleQueue[int]()
    undertaker.expect()

    def fail() -> None:
        raise KeyError("no such pool")

    undertaker.note(fail)
    undertaker.note(lambda: done.put(1))
    assert done.get(timeout=10) == 1
    assert "could not be ended" in caplog.text


def test_the_child_of_a_fork_starts_anew() -> None:
    undertaker, done = Undertaker(), SimpleQueue[int]()
    undertaker.note(lambda: done.put(1))
    undertaker.before_fork()
    undertaker.after_fork_in_child()
    undertaker.expect()
    undertaker.note(lambda: done.put(2))
    assert done.get(timeout=10) == 2
