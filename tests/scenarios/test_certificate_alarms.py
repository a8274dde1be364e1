"""What the status says of certificates: renewed while nobody notices, or an alarm in time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from support.commands import meshlib, wait_until
from support.secure_mesh import SecureMesh, asked, failures, more, secure_mesh

from meshlib.control.ca.mesh import MeshNote
from meshlib.identity import renewal

LIFE = 8


def callers(control: SecureMesh, account: str = "productpage") -> list[dict[str, Any]]:
    assert control.service is not None
    found = control.service.status()["clients"]
    return [one for one in found if one["service_account"] == account]


def told(control: SecureMesh, *options: str) -> Any:
    MeshNote().write(control.folder / "ca")  # as `meshlib control` does
    return meshlib("status", "--control", control.address, "--state", str(control.folder / "ca"), *options)


def test_each_new_certificate_is_seen_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "RATIO", 0.25)  # far from the alarm
    with (
        secure_mesh(tmp_path, max_ttl_s=LIFE) as control,
        control.served("serve-renewing"),
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        more(asking)
        ends: set[float] = set()
        servers = set[str]()
        begun = time.time()
        while (len(ends) < 3 or time.time() < begun + 1.1 * LIFE) and not failures(asking):
            assert time.time() < begun + 8 * LIFE
            for one in callers(control):
                ends.add(one["certificate"]["end"])
                assert not one["certificate"]["alarm"]
                assert one["certificate"]["root"] == control.authority.fingerprint
            assert control.service is not None
            servers.add(str([one["id"] for one in control.service.status()["registrations"]]))
            more(asking, 3)
        done = told(control)
    assert failures(asking) == []
    assert len(ends) >= 3
    assert len(servers) == 1  # nobody ever left
    assert (done.returncode, "default/productpage" in done.stdout) == (0, True), done.stdout
    assert [r.message for r in caplog.records if "lost the control service" in r.message] == []


def test_a_certificate_that_is_not_renewed_is_an_alarm_before_it_ends(tmp_path: Path) -> None:
    """The workload's own log and metric: see its unit tests."""
    hour = 3600
    with secure_mesh(tmp_path, max_ttl_s=hour) as control, control.joined("productpage") as mesh:
        mesh.prepare("reviews:9080")
        wait_until(lambda: callers(control) != [], 20, "the client")
        assert control.service is not None
        for ahead, health in ((0.5, "ok"), (0.7, "late")):
            control.service._wall = lambda ahead=ahead: time.time() + ahead * hour
            assert callers(control)[0]["certificate"]["health"] == health
        control.service._wall = lambda: time.time() + 0.8 * hour
        text, found = told(control), told(control, "-o", "json")
    assert (text.returncode, found.returncode) == (3, 3), text.stderr
    assert "alarm the certificate of default/productpage at 127.0.0.1:" in text.stdout
    (alarm,) = json.loads(found.stdout)["alarms"]
    assert " and was not renewed; that workload's log says why" in alarm
