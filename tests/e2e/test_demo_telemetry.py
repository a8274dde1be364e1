"""What the demo's services tell a collector of the same requests, from both sides, over mutual TLS."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.collector import Collected, collector
from support.commands import MESHLIB
from support.ports import free_port

pytestmark = pytest.mark.timeout(120)


def test_both_sides_tell_the_same_story(tmp_path: Path) -> None:
    port = free_port()
    with collector() as collected:
        process = subprocess.Popen(
            [*MESHLIB, "demo", "--port", str(port), "--folder", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint},
        )
        try:
            assert process.stdout is not None
            line = " "
            while line and "Ctrl-C" not in line:
                line = process.stdout.readline()
            for _ in range(3):
                httpx.get(f"http://127.0.0.1:{port}/productpage", trust_env=False, timeout=20)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        source, destination = (_details(collected, side) for side in ("source", "destination"))
        names = {span.name for _, span in collected.spans()}
    assert source is not None
    assert destination is not None
    mine = ("reporter", "connection_security_policy")
    different = {
        name: (value, destination[name])
        for name, value in source.items()
        if destination[name] != value and name not in mine
    }
    assert different == {}
    assert (source["connection_security_policy"], destination["connection_security_policy"]) == (
        "unknown",
        "mutual_tls",
    )
    assert source["source_principal"] == "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
    assert source["destination_principal"] == "spiffe://cluster.local/ns/default/sa/bookinfo-details"
    assert (source["source_workload"], source["destination_workload"]) == ("productpage", "details")
    assert source["destination_service"] == "details.default.svc.cluster.local"
    assert "details.default.svc.cluster.local:9080/*" in names


def _details(collected: Collected, reporter: str) -> dict[str, Any] | None:
    """The labels of successful requests to details."""
    for request in reversed(collected.metrics):
        alone = Collected("")
        alone.metrics = [request]
        for labels, _ in alone.points("istio_requests_total"):
            to_details = labels["destination_canonical_service"] == "details"
            from_page = labels["source_canonical_service"] == "productpage"
            if (
                to_details
                and from_page
                and labels["reporter"] == reporter
                and labels["response_code"] == "200"
            ):
                return labels
    return None
