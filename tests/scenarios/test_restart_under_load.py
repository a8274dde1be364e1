"""The control service is killed, hangs and returns while clients ask: nothing fails, nothing goes back."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.commands import control, wait_until
from support.named_server import named_server
from support.ports import free_port

import meshlib
from meshlib.dataplane.ads import order

RULES = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews, subset: SUBSET}}]
"""
URL = "http://reviews:9080/"
PACE = 0.008
"""Seconds between two requests."""


class Asker:
    """Asks all the time: who answered, and by which configuration."""

    def __init__(self, mesh: meshlib.Mesh) -> None:
        self.mesh = mesh
        self.seen: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with meshlib.Client(mesh=self.mesh) as client:
            while not self._end.wait(PACE):
                try:
                    self._took(client.get(URL).text)
                except Exception as error:
                    self.failures.append(repr(error))

    def _took(self, text: str) -> None:
        self.seen.append((text.split()[0], self.mesh.view.version))

    @property
    def last(self) -> str:
        return self.seen[-1][0] if self.seen else ""

    def more(self, count: int = 50) -> None:
        """Waits for so many answers more."""
        until = len(self.seen) + count
        wait_until(lambda: len(self.seen) >= until or bool(self.failures), 60, "answers")

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


class AsyncAsker(Asker):
    """The same with asyncio."""

    def _ask(self) -> None:
        asyncio.run(self._aask())

    async def _aask(self) -> None:
        async with meshlib.AsyncClient(mesh=self.mesh) as client:
            while not self._end.is_set():
                await asyncio.sleep(PACE)
                try:
                    self._took((await client.get(URL)).text)
                except Exception as error:
                    self.failures.append(repr(error))


@contextmanager
def joined(name: str, address: str) -> Iterator[None]:
    with named_server(name) as port:
        labels = {"app": "reviews", "version": name}
        with meshlib.register(
            control=address, allow_plaintext=True, labels=labels, ports={"http": port}, drain=0
        ) as registration:
            assert registration.wait(60)
            yield


def test_killed_restarted_and_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "mesh"
    folder.mkdir()
    rules = folder / "rules.yaml"
    rules.write_text(RULES.replace("SUBSET", "v1"))
    address = f"127.0.0.1:{free_port()}"
    with (
        control(folder, address=address) as first,
        joined("v1", address),
        joined("v2", address),
        meshlib.connect(address, state_dir=tmp_path / "state", allow_plaintext=True) as mesh,
    ):
        wait_until(lambda: len(first.status()["registrations"]) == 2, 60, "both servers")
        with Asker(mesh) as blocking, AsyncAsker(mesh) as asynchronous:
            asking = (blocking, asynchronous)

            def more(count: int = 50) -> None:
                for one in asking:
                    one.more(count)

            more()
            first.process.send_signal(signal.SIGKILL)
            wait_until(lambda: not mesh.connected, 60, "the loss")
            more()
            rules.write_text(RULES.replace("SUBSET", "v2"))
            with control(folder, address=address) as second:
                wait_until(lambda: mesh.connected, 60, "the connection")
                for one in asking:
                    wait_until(lambda one=one: one.last == "v2" or bool(one.failures), 60, "the edit")  # type: ignore[misc]
                more()
                os.kill(second.process.pid, signal.SIGSTOP)
                more(200)
                os.kill(second.process.pid, signal.SIGCONT)
                more()
                second.process.send_signal(signal.SIGKILL)
                wait_until(lambda: not mesh.connected, 60, "the loss")
            with control(folder, address=address):
                wait_until(lambda: mesh.connected, 60, "the connection")
                more()
    for one in asking:
        assert one.failures == []
        names = [name for name, _ in one.seen]
        assert names == sorted(names)
        versions = [order(version) for _, version in one.seen]
        assert versions == sorted(versions)
        assert len({start for start, _ in versions}) == 3
