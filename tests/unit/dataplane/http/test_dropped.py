"""Dropped exchanges are ended on a thread, whoever noticed them and under whatever lock."""

import gc
import threading
from queue import SimpleQueue

import pytest

from meshlib.dataplane.http.dropped import Undertaker


class Client:
    """Hands out responses."""


def test_what_is_noted_before_the_thread_is_there_is_done_when_it_is() -> None:
    undertaker, done, client = Undertaker(), SimpleQueue[str](), Client()
    undertaker.note(lambda: done.put(threading.current_thread().name))
    assert "not started" in repr(undertaker)
    for _ in range(2):
        undertaker.expect(client)
    assert done.get(timeout=10) == "meshlib-dropped"
    assert "of 1, at work" in repr(undertaker)


def test_one_that_fails_is_told_and_the_next_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    undertaker, done, client = Undertaker(), SimpleQueue[int](), Client()
    undertaker.expect(client)

    def fail() -> None:
        raise KeyError("no such pool")

    undertaker.note(fail)
    undertaker.note(lambda: done.put(1))
    assert done.get(timeout=10) == 1
    assert "could not be ended" in caplog.text


def test_it_ends_with_the_last_client_and_starts_again() -> None:
    undertaker, first, second = Undertaker(), Client(), Client()
    for _ in range(2):
        undertaker.expect(first)
        undertaker.expect(second)
        thread = undertaker._thread
        assert thread is not None
        undertaker.forget(first)
        undertaker.forget(first)
        assert thread.is_alive()
        undertaker.forget(second)
        assert not thread.is_alive()
        assert "of 0, not started" in repr(undertaker)


def test_a_client_that_is_forgotten_is_not_kept_alive() -> None:
    undertaker, client = Undertaker(), Client()
    undertaker.expect(client)
    thread = undertaker._thread
    assert thread is not None
    del client
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_the_child_of_a_fork_starts_anew() -> None:
    undertaker, done, client = Undertaker(), SimpleQueue[int](), Client()
    undertaker.note(lambda: done.put(1))
    undertaker.before_fork()
    undertaker.after_fork_in_child()
    undertaker.expect(client)
    undertaker.note(lambda: done.put(2))
    assert done.get(timeout=10) == 2
