"""A control service that is told to stop says so to its clients, and nothing else to anybody."""

import signal
from pathlib import Path

import grpc
from support.ads_peer import follow
from support.commands import control

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.register import Registration

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""


def test_clients_are_told_and_nothing_is_complained_about(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE)
    with control(tmp_path) as served, grpc.insecure_channel(served.address) as channel:
        settings = bootstrap({}, allow_plaintext=True, control=served.address, ports={"http": 9080}, drain=0)
        with Registration(settings) as joined:
            assert joined.wait(60)
            streams = [follow(channel, f"peer-{n}", "reviews:9080", delta=n % 2 == 0) for n in range(10)]
            for stream in streams:
                next(stream)
            served.process.send_signal(signal.SIGTERM)
            for stream in streams:
                try:
                    for _ in stream:
                        pass
                except grpc.RpcError as error:
                    told = error.code(), error.details()
                assert told == (grpc.StatusCode.UNAVAILABLE, "the control service is stopping")
            output, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert output.endswith("stopped; clients keep what they have\n")
    told = output.replace("WARNING meshlib.control.serve.server: PLAINTEXT on", "")
    for noise in ("Traceback", "WARNING", "ERROR", "Cancelled"):
        assert noise not in told
