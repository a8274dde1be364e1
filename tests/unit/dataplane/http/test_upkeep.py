"""Who looks after idle connections: one thread, which comes and goes."""

import gc
import logging
import threading

import pytest

from meshlib.dataplane.http.upkeep import Caretaker


class Client:
    """What is looked after: what it says, one after the other."""

    def __init__(self, *said: float | Exception | None) -> None:
        self.said = list(said)
        self.looked = threading.Semaphore(0)

    def look(self) -> float | None:
        said = self.said.pop(0)
        self.looked.release()
        if isinstance(said, Exception):
            raise said
        return said


def ended(caretaker: Caretaker, thread: threading.Thread | None) -> bool:
    assert thread is not None
    thread.join(5)
    return caretaker._thread is None and not thread.is_alive()


def test_one_is_asked_when_it_said_and_again_and_then_the_thread_ends() -> None:
    caretaker, client = Caretaker(), Client(0.001, None)
    caretaker.expect(client, 0.001)
    thread = caretaker._thread
    for _ in range(2):
        assert client.looked.acquire(timeout=5)
    assert ended(caretaker, thread)
    assert repr(caretaker) == "<Caretaker of 0>"


def test_what_is_due_sooner_is_not_kept_waiting() -> None:
    caretaker, late, soon = Caretaker(), Client(), Client(None)
    caretaker.expect(late, 3600)
    thread = caretaker._thread
    caretaker.expect(soon, 0.0)
    assert soon.looked.acquire(timeout=5)
    caretaker.forget(late)
    assert ended(caretaker, thread)


def test_who_is_closed_is_not_asked_and_the_thread_ends() -> None:
    caretaker, client = Caretaker(), Client()
    caretaker.expect(client, 3600)
    thread = caretaker._thread
    assert thread is not None
    assert thread.daemon
    caretaker.forget(client)
    caretaker.forget(client)
    assert ended(caretaker, thread)


def test_who_is_forgotten_is_not_kept_alive() -> None:
    caretaker, client = Caretaker(), Client()
    caretaker.expect(client, 0.005)
    thread = caretaker._thread
    del client
    gc.collect()
    assert ended(caretaker, thread)


def test_a_client_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caretaker, bad, good = Caretaker(), Client(ValueError("odd")), Client(None)
    with caplog.at_level(logging.ERROR):
        caretaker.expect(bad, 0.0)
        thread = caretaker._thread
        caretaker.expect(good, 0.001)
        assert good.looked.acquire(timeout=5)
        assert ended(caretaker, caretaker._thread or thread)
    assert "could not be looked after" in caplog.text


def test_a_child_of_a_fork_looks_after_nothing_of_its_parents() -> None:
    caretaker, client = Caretaker(), Client()
    caretaker.expect(client, 3600)
    thread, changed = caretaker._thread, caretaker._changed
    caretaker.before_fork()
    caretaker.after_fork_in_parent()
    assert repr(caretaker) == "<Caretaker of 1>"
    due = caretaker._due
    caretaker.after_fork_in_child()
    assert (repr(caretaker), caretaker._thread) == ("<Caretaker of 0>", None)
    caretaker._due, caretaker._changed, caretaker._thread = due, changed, thread
    caretaker.forget(client)
    assert ended(caretaker, thread)
