"""Load while endpoints come, go and fail, certificates rotate and the configuration changes every second.

Clients of five libraries, each in a process of its own, and plain ones through a real Envoy of the same
control service ask the same of the same endpoints, in phases that are one after another. `judge` has the law.
One round of phases in the gate; `SOAK_SECONDS=600 pytest tests/soak -s` goes on for ten minutes, and says at
the end what was asked and what failed.
"""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from soak.asking import KINDS
from soak.beside import Building
from soak.fleet import LASTS, Fleet
from soak.judge import GROWTH, MAY, Record, grown, growth, wrong
from soak.rules import rules
from support.commands import wait_until
from support.ports import free_port
from support.secure_mesh import SecureMesh, secure_mesh

from meshlib.control.service import ControlService

T = TypeVar("T")
SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))
"""Further rounds begin until then; the first is always whole."""
LONG = SECONDS > 60
EACH = 2 if LONG else 3
"""Servers of each service of the mesh; in the gate those that go are not replaced."""
PHASE = 8.0 if LONG else 1.0
"""Seconds that one lasts at the least."""
BARE_SECONDS = 15 if LONG else 30
"""In a long soak time runs out while an endpoint is deaf; the gate has no time to wait for that."""
LIFE, RENEWED = 600, 0.02 if LONG else 0.008
"""Seconds that a certificate lives, and after which share it is renewed, give or take half of that: in the
long soak every twelve seconds, so that one of them is renewed each second.
"""
PATIENCE = 180
"""Seconds in which anything must happen on a machine that is ten times as slow."""
CALLER = "productpage"
FAILING = ("unavailable", "resetting", "deaf")


class Loaded:
    """The process of one kind of clients, and what it says."""

    def __init__(self, kind: str, settings: dict[str, Any], ports: dict[str, int]) -> None:
        tests = str(Path(__file__).parents[1])
        self.kind = kind
        self.process = subprocess.Popen(
            [sys.executable, "-m", "soak.load"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((tests, os.environ.get("PYTHONPATH", "")))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told: list[dict[str, Any]] = []
        self.all: dict[str, Any] = {}
        self.phase = 0
        self._say({"kind": kind, "settings": settings, "ports": ports, "renewed": RENEWED})
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _say(self, what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "phase" in said:
                self.phase = said["phase"]
            elif "asked" in said:
                self.all = said
            else:
                self.told.append(said)

    def warm(self) -> bool:
        """Whether it has begun."""
        assert self.process.poll() is None, f"{self.kind} ended"
        return bool(self.told) and self.told[-1]["good"] > 20

    def enter(self, phase: int) -> None:
        """What begins from now on belongs to that phase."""
        self._say(phase)
        wait_until(lambda: self.phase == phase or self.process.poll() is not None, PATIENCE, self.kind)
        assert self.process.poll() is None, f"{self.kind} ended"

    def end(self) -> None:
        """Ends it, and hears what came of it all."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(120) == 0
        self._reader.join(60)

    def __enter__(self) -> "Loaded":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Configuration:
    """What is in force: another one every second, and whenever it is asked for."""

    def __init__(self, control: SecureMesh, ports: dict[str, int]) -> None:
        self._control, self._ports = control, ports
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.fleet: Fleet | None = None

    def edit(self) -> None:
        """Another one."""
        with self._lock:
            entries = {} if self.fleet is None else self.fleet.entries
            text = rules(next(self._numbers), self._ports, entries, BARE_SECONDS)
            new = self._control.documents.with_suffix(".new")
            new.write_text(text)
            new.rename(self._control.documents / "mesh.yaml")

    def changed(self, servers: int) -> None:
        """Waits until so many servers are known, and all have heard of that and of what is in force."""
        before = self.ask(lambda service: service.hub.version)
        self.edit()

        def in_force() -> bool:
            known, version = self.ask(
                lambda service: (len(service.status()["registrations"]), service.hub.version)
            )
            return known == servers and version != before

        def heard() -> bool:
            return self.ask(
                lambda service: all(
                    one.seen >= published or one.behind_since is None for one in service.hub.connections
                )
            )

        _wait(in_force, f"{servers} servers")
        published = self.ask(lambda service: service.hub.published)
        _wait(heard, "all to hear")

    def ask(self, what: Callable[[ControlService], T]) -> T:
        """What the control service says."""

        async def ask() -> T:
            assert self._control.service is not None
            return what(self._control.service)

        return asyncio.run_coroutine_threadsafe(ask(), self._control.loop).result(PATIENCE)

    @contextlib.contextmanager
    def edited(self) -> Iterator[None]:
        """Every second."""
        end = threading.Event()

        def edit() -> None:
            while not end.wait(1.0):
                self.edit()

        thread = threading.Thread(target=edit)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def _wait(true: Callable[[], bool], what: str) -> None:
    """Asks the control service now and then: an answer is work for it."""
    wait_until(lambda: true() or bool(time.sleep(0.2)), PATIENCE, what)


def go_through(fleet: Fleet, loads: list[Loaded]) -> list[str]:
    """All phases; the kind of each."""
    begun = time.monotonic()
    phases = ["calm"]  # until all is warm
    while len(phases) == 1 or time.monotonic() < begun + SECONDS:
        for kind in MAY:
            phases.append(kind)
            for one in loads:
                one.enter(len(phases) - 1)
            until = time.monotonic() + (BARE_SECONDS + PHASE if LONG and kind == "deaf" else PHASE)
            with fleet.failing(kind) if kind in FAILING else contextlib.nullcontext():
                if kind in ("drain", "die"):
                    fleet.replace(kind, all_of_them=LONG)
                time.sleep(max(0.0, until - time.monotonic()))
            told = {one.kind: (one.told[-1]["good"], one.told[-1]["failures"]) for one in loads}
            print(f"{time.monotonic() - begun:.0f} s, after {kind}: good and failed {told}", flush=True)
    return phases


def settings(control: SecureMesh) -> dict[str, Any]:
    """Of a process that asks."""
    return control.settings(CALLER, LASTS) | {"state_dir": "", "first_call_timeout": 60.0}


@pytest.mark.timeout(SECONDS * 2 + 600)
def test_soak(tmp_path: Path) -> None:
    ports = {"http": free_port(), "grpc": free_port()}
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(
            secure_mesh(
                tmp_path, max_ttl_s=LIFE, building=lambda authority: Building(authority, CALLER, LIFE)
            )
        )
        configuration = Configuration(control, ports)
        fleet = configuration.fleet = stack.enter_context(Fleet(control, configuration.changed, EACH))
        configuration.edit()
        with configuration.edited():
            loads = [stack.enter_context(Loaded(kind, settings(control), ports)) for kind in KINDS]
            for one in loads:
                wait_until(one.warm, PATIENCE, f"the first answers of {one.kind}")
            phases = go_through(fleet, loads)
        told = configuration.ask(lambda service: service.status())
        refusals = [kind["nack"] for one in told["clients"] for kind in one["kinds"]]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Loaded.end, loads))
    report(loads, phases)
    assert set(refusals) <= {""}
    judged(loads, phases)


def report(loads: list[Loaded], phases: list[str]) -> None:
    """Prints what there was."""
    for one in loads:
        made = Record.of(one.all, phases)
        print(
            f"{one.kind}: first {one.told[0]}, last {one.told[-1]}; of {made.asked.total()} requests failed"
        )
        for (kind, service, policy, reason), count in sorted(made.failed.items()):
            print(
                f"    {kind}, {service}, {policy}: {count} of {made.asked[kind, service, policy]}, {reason}"
            )
        for service, policy, reason, words in one.all["words"]:
            print(f"  {service} {policy} {reason}:", *words[:4], sep="\n      ")


def judged(loads: list[Loaded], phases: list[str]) -> None:
    """AssertionError: the law was broken."""
    times = {kind: phases.count(kind) for kind in MAY}
    records = {one.kind: Record.of(one.all, phases) for one in loads}
    envoys = records.pop("envoy")
    mine = [one for one in loads if one.kind != "envoy"]
    found = {
        one.kind: (wrong(records[one.kind], envoys, times), grown(one.told), one.told[-1]["slots"])
        for one in mine
    }
    print("growth over the second half:")
    for one in mine:
        print(f"  {one.kind}:", {name: round(growth([t[name] for t in one.told]), 1) for name in GROWTH})
    assert found == {one.kind: ([], [], 0) for one in mine}
    for one in loads:
        assert one.told[-1]["good"] > len(phases) * 5, one.kind
    for one in mine:  # what was to happen has happened
        assert len({told["certificate"] for told in one.told}) > 1 + SECONDS // 60, one.kind
        assert len({told["configuration"] for told in one.told}) > 5 + SECONDS // 5, one.kind
