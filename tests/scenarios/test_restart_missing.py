"""Rules that name what does not exist: while control is down, a new process answers as those before did."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import control
from support.named_server import named_server

import meshlib
from meshlib.errors import ControlUnavailable

RULES = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.0.1, ports: {http: PORT}, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /copied}}]
    route: [{destination: {host: reviews, subset: v1}}]
    mirror: {host: reviews, subset: unknown}
  - match: [{uri: {prefix: /subset}}]
    route: [{destination: {host: reviews, subset: unknown}}]
  - match: [{uri: {prefix: /host}}]
    route: [{destination: {host: nobody, subset: v1, port: {number: 80}}}]
  - route: [{destination: {host: reviews, subset: v1}}]
"""
ASK = """
import sys
import meshlib

control, folder, *paths = sys.argv[1:]
mesh = meshlib.connect(control, state_dir=folder, allow_plaintext=True)
with mesh, meshlib.Client(mesh=mesh) as client:
    for path in paths:
        answer = client.get("http://reviews:9080" + path)
        facts = answer.extensions["meshlib"]
        said = (facts.flag, facts.source, facts.cluster, repr(facts.detail))
        print(path, answer.status_code, repr(answer.text), *said)
    print("connected:", mesh.connected)
"""
KNOWN = "outbound|9080|v1|reviews.default.svc.cluster.local"
PATHS = ("/copied", "/subset", "/host", "/")


def ask(address: str, folder: Path) -> list[str]:
    """What a process of its own is answered, and whether it heard control."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address, str(folder), *PATHS],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    with named_server("v1") as port:
        yield port


def test_the_good_rules_are_served_and_the_bad_ones_answer_as_before(tmp_path: Path, upstream: int) -> None:
    rules = tmp_path / "mesh" / "rules.yaml"
    rules.parent.mkdir()
    rules.write_text(RULES.replace("PORT", str(upstream)))
    with control(rules.parent) as served:
        live = ask(served.address, tmp_path / "state")
    unknown = "outbound|9080|unknown|reviews.default.svc.cluster.local"
    nobody = "outbound|80|v1|nobody.default.svc.cluster.local"
    assert live == [
        f"/copied 200 'v1 GET /copied' - {line('/copied')} {KNOWN} ''",
        f"/subset 503 '' NC {line('/subset')} {unknown} 'cluster {unknown} is unknown'",
        f"/host 503 '' NC {line('/host')} {nobody} 'cluster {nobody} is unknown'",
        f"/ 200 'v1 GET /' - {line('  - route:')} {KNOWN} ''",
        "connected: True",
    ]
    assert ask(served.address, tmp_path / "state") == [*live[:-1], "connected: False"]


def line(text: str) -> str:
    """Where the rule with that text stands."""
    number = next(n for n, found in enumerate(RULES.splitlines(), 1) if text in found)
    return f"rules.yaml:{number}"


def test_what_is_said_when_the_disk_does_not_help(tmp_path: Path, upstream: int) -> None:
    rules, state = tmp_path / "mesh" / "rules.yaml", tmp_path / "state"
    rules.parent.mkdir()
    rules.write_text(RULES.replace("PORT", str(upstream)))
    with control(rules.parent) as served:
        ask(served.address, state)
    assert why(served.address, tmp_path / "empty") == (
        f"there is no last good configuration in {tmp_path}/empty"
    )
    assert why(served.address, state, "other:80") == (
        f"the last good configuration in {state} is of other targets"
    )
    assert why(served.address, state, labels={"app": "web"}) == (
        f"the last good configuration in {state} is another client's: of another control address, namespace, "
        "service account, labels or locality"
    )
    (kept,) = state.glob("*.mesh")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert why(served.address, state) == f"the last good configuration in {kept} can't be used: it is broken"


def why(address: str, folder: Path, target: str = "reviews:9080", **who: Any) -> str:
    """What the error says of the disk."""
    with (
        meshlib.connect(
            address, state_dir=folder, allow_plaintext=True, first_call_timeout=0.5, **who
        ) as mesh,
        pytest.raises(ControlUnavailable) as raised,
    ):
        mesh.prepare(target)
    return str(raised.value).partition("), and ")[2].partition(". Is `meshlib control`")[0]
