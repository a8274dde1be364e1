"""Load while endpoints come, go and fail, certificates rotate and the configuration changes every second.

Nothing fails but what has begun when its endpoint is killed, and nothing grows. Twenty seconds in the gate;
`SOAK_SECONDS=600 pytest tests/soak -s --timeout 900` shows what ten minutes do, a line every ten seconds.
"""

import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.commands import wait_until
from support.secure_mesh import SecureMesh, Served, secure_mesh

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
LIFE = 20
"""Seconds that a certificate lives: it is renewed every ten or so."""
LASTS = 3600
"""Seconds that a token counts: longer than the soak, as one that the platform renews."""
SERVERS = 3
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
# A hashed request goes to a killed endpoint again and again, as in Envoy, until that is ejected.
BALANCERS = (
    "simple: ROUND_ROBIN",
    "simple: LEAST_REQUEST",
    "simple: RANDOM",
    "consistentHash: {httpHeaderName: x-user}",
)
BEGUN = ("body broke off", "response had begun")
"""What no proxy could try again."""


def rules(number: int) -> str:
    """Another configuration for each second."""
    weight = number * 7 % 101
    uses = (0, 1, 20)[number % 3]
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {{{BALANCERS[number % len(BALANCERS)]}}}
    connectionPool: {{http: {{maxRequestsPerConnection: {uses}, idleTimeout: {1 + number % 5}s}}}}
    outlierDetection:
      {{consecutiveGatewayErrors: 3, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}}
  subsets:
  - {{name: one, labels: {{app: reviews}}}}
  - {{name: two, labels: {{app: reviews}}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{x-user: {{exact: "{number % 7}"}}}}}}]
    headers: {{response: {{add: {{x-configuration: "{number}"}}}}}}
    timeout: {5 + number % 3}s
    retries: {{attempts: 5, retryOn: "connect-failure,refused-stream,reset,gateway-error", perTryTimeout: 3s}}
    route: [{{destination: {{host: reviews, subset: one}}}}]
  - retries: {{attempts: 5, retryOn: "connect-failure,refused-stream,reset,gateway-error"}}
    route:
    - {{destination: {{host: reviews, subset: one}}, weight: {weight}}}
    - {{destination: {{host: reviews, subset: two}}, weight: {100 - weight}}}
"""


class Loaded:
    """The process of the load, and what it says."""

    def __init__(self, settings: dict[str, Any]) -> None:
        here = Path(__file__).parent
        self.process = subprocess.Popen(
            [sys.executable, str(here / "load.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(settings) + "\n")
        self.process.stdin.flush()
        self.told: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "failed" in said:
                self.failed = said["failed"]
            else:
                self.told.append(said)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._reader.join(60)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> "Loaded":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


@contextlib.contextmanager
def edited(control: SecureMesh) -> Iterator[None]:
    """Another configuration every second."""
    end = threading.Event()

    def edit() -> None:
        for number in itertools.count():
            control.edit(STRICT, rules(number))
            if end.wait(1.0):
                return

    thread = threading.Thread(target=edit)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Fleet:
    """Servers that are replaced one by one: told to go, or killed."""

    def __init__(self, control: SecureMesh) -> None:
        self._control = control
        self._dice = random.Random(1)
        self._running: list[tuple[contextlib.ExitStack, Served]] = []
        self.replaced = {"drained": 0, "killed": 0}

    def grow(self) -> None:
        stack = contextlib.ExitStack()
        token = self._control.settings("reviews", LASTS)["token"]
        served = stack.enter_context(self._control.served(token=token))
        self._running.append((stack, served))

    def replace(self) -> None:
        """One goes; another comes before it or after it."""
        before = self._dice.random() < 0.5
        if before:
            self.grow()
        stack, served = self._running.pop(self._dice.randrange(SERVERS))
        kind = self._dice.choice(("drained", "killed"))
        self.replaced[kind] += 1
        if kind == "killed":
            served.process.kill()
        stack.close()
        if not before:
            self.grow()

    def __enter__(self) -> "Fleet":
        with ThreadPoolExecutor(SERVERS) as pool:
            for grown in [pool.submit(self.grow) for _ in range(SERVERS)]:
                grown.result()
        return self

    def __exit__(self, *_: object) -> None:
        for stack, _served in self._running:
            stack.close()


def flat(told: list[dict[str, Any]], what: str) -> tuple[float, float]:
    """The median of the second quarter and of the last one."""
    quarter = len(told) // 4
    early, late = told[quarter : 2 * quarter], told[-quarter:]
    return statistics.median(t[what] for t in early), statistics.median(t[what] for t in late)


def test_soak(tmp_path: Path) -> None:
    with secure_mesh(tmp_path, STRICT, rules(0), max_ttl_s=LIFE) as control, Fleet(control) as fleet:
        settings = {**control.settings("productpage", LASTS), "state_dir": ""}
        with Loaded(settings) as load:
            wait_until(lambda: bool(load.told and load.told[-1]["answers"] > 20), 30, "the first answers")
            with edited(control):
                until = time.monotonic() + SECONDS
                shown = 0
                while time.monotonic() < until:
                    fleet.replace()
                    if len(load.told) >= shown + 10:
                        shown = len(load.told)
                        print(load.told[-1], fleet.replaced)
            load.end()
    first, last = load.told[0], load.told[-1]
    print(json.dumps({"first": first, "last": last, **fleet.replaced}))
    print(*load.failed, sep="\n")
    begun = [one for one in load.failed if any(words in one for words in BEGUN)]
    assert [one for one in load.failed if one not in begun] == []
    assert len(begun) <= fleet.replaced["killed"] * 12
    assert last["answers"] > 10 * SECONDS
    assert last["threads"] <= first["threads"] + 1
    early, late = flat(load.told, "descriptors")
    assert late <= early + 20
    early, late = flat(load.told, "tasks")
    assert late <= early + 2
    early, late = flat(load.told, "rss_kb")
    assert late <= early + 6_000
