"""gunicorn's signals under load: more and fewer workers, a reload, a new arbiter beside the old."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.commands import wait_until
from support.serving import SecureMesh, gunicorn, secure_mesh, until

import meshlib

FLASK, FASTAPI = "support.served_flask:app", "support.served_fastapi:app"
SERVERS = {
    "sync": gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK),
    "gthread": gunicorn("meshlib_gunicorn.ThreadWorker", FLASK, "--threads", "4"),
    "uvicorn": gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), SERVERS) as found:
        yield found


class Load:
    """Asks all the time, on a connection that lasts and on new ones, and says which processes answered."""

    def __init__(self, place: meshlib.Mesh, url: str) -> None:
        self._place, self._url = place, url
        self._end = threading.Event()
        self.processes: list[int] = []
        self.wrong: list[str] = []

    def _ask(self, requests_of_a_client: int) -> None:
        while not self._end.is_set():
            with meshlib.Client(mesh=self._place, timeout=20) as client:
                for _ in range(requests_of_a_client):
                    if self._end.is_set():
                        return
                    try:
                        reply = client.get(self._url)
                    except Exception as error:
                        self.wrong.append(f"{time.time():.3f} {error!r}")
                        continue
                    if reply.status_code == 200:
                        self.processes.append(reply.json()["process"])
                    else:
                        self.wrong.append(f"{reply.status_code} {reply.text} {reply.extensions['meshlib']}")
                    time.sleep(0.01)

    @contextmanager
    def on(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask, args=(count,)) for count in (1, 5, 1_000_000)]
        for one in threads:
            one.start()
        try:
            yield self
        finally:
            self._end.set()
            for one in threads:
                one.join(30)

    def until_only(self, processes: set[int]) -> None:
        """Waits until each of these has answered, and nobody else does."""
        assert processes
        last = len(processes) * 10

        def there() -> bool:
            asked = len(self.processes)
            wait_until(lambda: self.wrong or len(self.processes) >= asked + last, 60, "answers")
            return bool(self.wrong) or set(self.processes[-last:]) <= processes

        wait_until(there, 60, "the new processes")
        assert self.wrong == []


@pytest.mark.parametrize("name", SERVERS)
def test_no_request_is_lost(mesh: SecureMesh, name: str, tmp_path: Path) -> None:
    url, pid = f"http://{name}:9080/seen", tmp_path / "pid"
    # By its script: a new arbiter is started as the first one was, and after `python -m` gunicorn's own
    # folder, with an `http` in it, is first in the path then.
    script = str(Path(sys.executable).with_name("gunicorn"))
    command = [script, *SERVERS[name][3:], "--pid", str(pid)]
    with ExitStack() as stack:
        place = stack.enter_context(mesh.workload("page"))
        served = stack.enter_context(mesh.process(command, name, "front", "front"))
        with meshlib.Client(mesh=place, timeout=20) as client:
            until(client, url)
        load = stack.enter_context(Load(place, url).on())
        old = served.process

        def told(number: signal.Signals, workers: int) -> set[int]:
            before = children(old.pid)
            old.send_signal(number)
            wait_until(
                lambda: (
                    len(children(old.pid)) == workers
                    and (number != signal.SIGHUP or not before & children(old.pid))
                ),
                60,
                f"the workers after {number.name}",
            )
            return children(old.pid)

        load.until_only(told(signal.SIGTTIN, 2))
        load.until_only(told(signal.SIGTTOU, 1))
        load.until_only(told(signal.SIGHUP, 1))
        old.send_signal(signal.SIGUSR2)
        wait_until(Path(f"{pid}.2").exists, 60, "the new arbiter")
        new = int(Path(f"{pid}.2").read_text())
        try:
            wait_until(lambda: joined(mesh, name) == 2, 60, "its registration")
            old.send_signal(signal.SIGTERM)
            old.wait(60)
            load.until_only(children(new))
            assert load.wrong == []
        finally:
            os.kill(new, signal.SIGTERM)
            wait_until(lambda: not Path(f"/proc/{new}").exists() or gone(new), 60, "its end")


def joined(mesh: SecureMesh, name: str) -> int:
    return sum(line.startswith("+ server") and f"app={name}" in line for line in mesh.log.splitlines())


def gone(process: int) -> bool:
    return " Z " in Path(f"/proc/{process}/stat").read_text()


def children(process: int) -> set[int]:
    return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
