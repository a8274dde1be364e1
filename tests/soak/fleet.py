"""All that is asked: what runs, how it comes, goes and fails."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.secure_mesh import SecureMesh, Served

PUPPETS = ("plain", "ratings")
"""Their endpoints are all in one process, see `upstreams`."""
SEVERAL = 3
"""So many endpoints."""
SERVERS = {"reviews": "serve-often-renewing", "greeter": "serve-greeter"}
"""Those of the mesh, with certificates; each in a process of its own."""
LASTS = 36_000
"""Seconds that a token counts: longer than the soak, as one that the platform renews."""


PATIENT = {"first_call_timeout": "60"}
"""Of a process on a crowded machine."""


class Puppets:
    """The process of `upstreams`."""

    def __init__(self) -> None:
        here = Path(__file__).parent / "upstreams.py"
        self._process = subprocess.Popen(
            [sys.executable, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def tell(self, what: str, port: int = 0) -> int:
        """Has it done; the port."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([what, port]) + "\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        assert said, "the endpoints are gone"
        return int(said)

    def __enter__(self) -> "Puppets":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


class Fleet:
    """Endpoints of all services, of those of the mesh `each`. `changed` is called when the configuration has
    to name others; it waits until so many servers are known, and everybody has heard.
    """

    def __init__(self, control: SecureMesh, changed: Callable[[int], None], each: int) -> None:
        self._control, self._changed, self._each = control, changed, each
        self._dice = random.Random(1)
        self._stack = contextlib.ExitStack()
        self.entries: dict[str, list[int]] = {service: [] for service in PUPPETS}
        self._served: dict[str, list[tuple[contextlib.ExitStack, Served]]] = {one: [] for one in SERVERS}

    def __enter__(self) -> "Fleet":
        self._puppets = self._stack.enter_context(Puppets())
        for service in PUPPETS:
            self.entries[service] = [self._puppets.tell("come") for _ in range(SEVERAL)]
        with ThreadPoolExecutor() as pool:
            for grown in [pool.submit(self._serve, one) for one in SERVERS for _ in range(self._each)]:
                grown.result()
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: one[0].close(), itertools.chain(*self._served.values())))
        self._stack.close()

    def _serve(self, service: str) -> None:
        stack = contextlib.ExitStack()
        token = self._control.settings(service, LASTS)["token"]
        settings = {"token": token, "service_account": service, "labels": f"app={service}", **PATIENT}
        self._served[service].append(
            (stack, stack.enter_context(self._control.served(SERVERS[service], **settings)))
        )

    def replace(self, how: str, *, all_of_them: bool) -> None:
        """One endpoint of each service goes, by `drain` or `die`; another one comes before, of servers of the
        mesh, which take long to start, only for `all_of_them`.
        """
        with ThreadPoolExecutor() as pool:
            grown = [pool.submit(self._serve, one) for one in SERVERS if all_of_them]
            for service in PUPPETS:
                self.entries[service].append(self._puppets.tell("come"))
            for one in grown:
                one.result()
        self._changed(self.servers)
        gone = {service: ports.pop(self._dice.randrange(SEVERAL)) for service, ports in self.entries.items()}
        if how == "die":
            for port in gone.values():
                self._puppets.tell("die", port)
        leaving = [found.pop(self._dice.randrange(len(found) - 1)) for found in self._served.values()]
        if how == "die":
            for _, served in leaving:
                served.process.kill()
            self._changed(self.servers)  # nobody is told before they are gone
        else:
            self._changed(self.servers + len(leaving))
        with ThreadPoolExecutor() as pool:
            ended = [pool.submit(stack.close) for stack, _ in leaving]
            if how == "drain":
                ended += [pool.submit(self._puppets.tell, "drain", port) for port in gone.values()]
            for done in ended:
                done.result()
        self._changed(self.servers)

    @property
    def servers(self) -> int:
        """How many there are of the mesh."""
        return sum(map(len, self._served.values()))

    @contextlib.contextmanager
    def failing(self, how: str) -> Iterator[None]:
        """One endpoint of each service that can is like that: `unavailable`, `resetting` or `deaf`."""
        ports = [self._dice.choice(found) for found in self.entries.values()]
        served = {service: self._dice.choice(found)[1].process for service, found in self._served.items()}
        begin, end = [], []
        if how == "deaf":
            begin, end = (
                [(one, signal.SIGSTOP) for one in served.values()],
                [(one, signal.SIGCONT) for one in served.values()],
            )
        elif how == "unavailable":
            begin, end = [(served["greeter"], signal.SIGUSR1)], [(served["greeter"], signal.SIGUSR2)]
        for port in ports:
            self._puppets.tell(how, port)
        for process, number in begin:
            os.kill(process.pid, number)
        try:
            yield
        finally:
            for port in ports:
                self._puppets.tell("well", port)
            for process, number in end:
                os.kill(process.pid, number)
