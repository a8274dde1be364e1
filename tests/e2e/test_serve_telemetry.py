"""`meshlib serve` sends metrics and spans where the OTEL_ variables say, and writes its access log."""

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
from support.collector import collector
from support.commands import MESHLIB, control, wait_until

MESH = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
"""
APPLICATION = """
import meshlib


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/outer":
        async with meshlib.AsyncClient() as client:
            await client.get("http://reviews/inner")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


def test_both_sides_of_a_served_application(tmp_path: Path) -> None:
    folder, log = tmp_path / "mesh", tmp_path / "access.log"
    folder.mkdir()
    (folder / "mesh.yaml").write_text(MESH)
    (tmp_path / "served_application.py").write_text(APPLICATION)
    with control(folder) as served, collector() as collected:
        env = os.environ | {
            "MESHLIB_CONTROL": served.address,
            "MESHLIB_STATE_DIR": "",
            "MESHLIB_SERVICE": "reviews",
            "MESHLIB_ACCESS_LOG": str(log),
            "MESHLIB_ACCESS_LOG_ENCODING": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
        }
        process = subprocess.Popen(
            [*MESHLIB, "serve", "served_application:app", "--port", "0"],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("serving at ").strip()
            wait_until(lambda: "/" not in url, 1, "the address")
            assert httpx.get(f"http://{url}/outer", trust_env=False, timeout=30).text == "hello"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode == 0
        points = collected.points("istio_requests_total")
        assert sorted(
            (labels["reporter"], labels["response_code"], point.as_int) for labels, point in points
        ) == [
            ("destination", "200", 2),
            ("source", "200", 1),
        ]
        source = next(labels for labels, _ in points if labels["reporter"] == "source")
        assert source["source_workload"] == "reviews"
        assert source["destination_service"] == "reviews.default.svc.cluster.local"
        assert source["destination_workload"] == "reviews"
        assert len(collected.points("istio_request_duration_milliseconds")) == 2
        spans = collected.spans()
        assert [resource["service.name"] for resource, _ in spans] == ["reviews"] * 3
        assert {resource["deployment.environment"] for resource, _ in spans} == {"test"}
        assert len({span.trace_id for _, span in spans}) == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["path"], line["response_code"]) for line in lines] == [
        ("/inner", 200),
        ("/inner", 200),
        ("/outer", 200),
    ]


def test_an_exporter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "served_application.py").write_text(APPLICATION)
    done = subprocess.run(
        [*MESHLIB, "serve", "served_application:app", "--port", "0", "--service", "reviews"],
        env=os.environ
        | {
            "OTEL_METRICS_EXPORTER": "pigeon",
            "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode != 0
    assert (
        "OTEL_METRICS_EXPORTER: pigeon is not installed; installed are console, otlp_proto_http"
        in done.stderr
    )
