"""How long it takes from a saved file until every one of 200 connected clients has the new routes.

    pytest tests/benchmarks/test_propagation.py --benchmark-enable -s

Goal: the last client has them within half a second (p99). Without --benchmark-enable one edit is made, to
see that it reaches everybody.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support
from support.commands import control

CLIENTS = 200
EDITS = 30

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - timeout: %dms
    route: [{destination: {host: reviews}}]
"""


@pytest.mark.timeout(120)
def test_an_edit_reaches_every_client(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    edits = EDITS if request.config.getoption("benchmark_enable") else 1
    (tmp_path / "service.yaml").write_text(SERVICE)
    rule = tmp_path / "rule.yaml"
    rule.write_text(RULE % 1000)
    script = Path(next(iter(support.__path__))) / "crowd.py"
    with control(tmp_path) as served:
        crowd = subprocess.Popen(
            [sys.executable, str(script), served.address, str(CLIENTS), "reviews:9080"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert crowd.stdout is not None
        try:
            assert crowd.stdout.readline()
            each, last = [], []
            for edit in range(edits):
                time.sleep(0.1)
                rule.write_text(RULE % (2000 + edit))
                saved = time.monotonic()
                took = [moment - saved for moment in json.loads(crowd.stdout.readline())]
                assert len(took) == CLIENTS
                each += took
                last.append(max(took))
        finally:
            crowd.kill()
            crowd.communicate()
    for who, seconds in (("each", each), ("the last", last)):
        shown = ", ".join(f"p{percent} {quantile(seconds, percent) * 1000:.0f} ms" for percent in (50, 99))
        print(f"\n{CLIENTS} clients, {edits} edits, {who}: {shown}", end="")


def quantile(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
