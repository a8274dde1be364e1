"""What a gunicorn server registers as, and what it does when that fails."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from support.ports import free_port
from support.serving import gunicorn

import meshlib
from meshlib_gunicorn.presence import LONGEST_PAUSE, Presence, listening, settings_of

ANYWHERE = [("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)]


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """Bound to every address, and deaf."""
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))
        yield one


class Log:
    """gunicorn's log, as far as it is used."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def error(self, text: str, *arguments: Any) -> None:
        self.said.append(text % arguments)


@pytest.mark.parametrize(("host", "family"), ANYWHERE)
def test_bound_to_every_address_the_one_that_leads_to_control_is_registered(
    host: str, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as one:
        one.bind((host, 0))
        found = settings_of(one)
        assert (found.address, dict(found.ports)) == ("", {"http": one.getsockname()[1]})


def test_the_address_is_the_sockets_unless_the_settings_say_it(
    bound: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert settings_of(one).address == "127.0.0.1"
        monkeypatch.setenv("MESHLIB_ADDRESS", "10.1.2.3")
        assert (settings_of(one).address, settings_of(bound).address) == ("10.1.2.3", "10.1.2.3")


def test_registers_without_an_address_that_is_not_known(bound: socket.socket) -> None:
    given: Queue[dict[str, Any]] = Queue()

    def register(**how: Any) -> Any:
        given.put(how)
        return object()

    Presence(bound, Log(), register).booted()
    assert given.get(timeout=60) == {
        "mutual_tls": True,
        "ports": {"http": bound.getsockname()[1]},
        "address": None,
    }
    assert given.empty()


@pytest.mark.parametrize("error", [meshlib.ConfigError("address: nobody knows"), OSError(24, "no files")])
def test_what_fails_is_told_and_tried_again_until_it_succeeds(bound: socket.socket, error: Exception) -> None:
    log, pauses, done = Log(), [], Queue[bool]()

    def register(**_: Any) -> Any:
        if len(pauses) < 7:
            raise error
        done.put(True)
        return object()

    Presence(bound, log, register, pauses.append).booted()
    assert done.get(timeout=60)
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE]
    assert log.said[0] == f"this server is not in the mesh, next try in 1 s: {error}"
    assert len(log.said) == len(pauses)


def test_several_addresses_of_one_port_are_the_first(bound: socket.socket) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", bound.getsockname()[1]))
        assert listening([other, bound]) is other
        assert listening([bound, other]) is bound


@pytest.mark.parametrize("worker", ["SyncMeshWorker", "ThreadWorker", "UvicornWorker"])
def test_what_has_no_place_in_the_mesh_is_refused(worker: str, tmp_path: Path) -> None:
    """A socket of the file system; two ports; a setting that can't be used."""
    command = gunicorn(f"meshlib_gunicorn.{worker}", "support.served_plain:app")
    where = {
        "SyncMeshWorker": ([f"unix:{tmp_path}/s"], "bind: found ['", "needed is one TCP port"),
        "ThreadWorker": ([_local(), "-b", _local()], "bind: found [(", ""),
        "UvicornWorker": ([_local()], "MESHLIB_PORTS: found 'x'", ""),
    }[worker]
    at = command.index("-b") + 1
    command[at : at + 1] = where[0]
    environ = {"MESHLIB_PORTS": "x"} if worker == "UvicornWorker" else {}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path
    )
    assert done.returncode == 3
    assert f"Reason: {where[1]}" in done.stderr
    assert where[2] in done.stderr
    assert "Traceback" not in done.stderr


def _local() -> str:
    return f"127.0.0.1:{free_port()}"
