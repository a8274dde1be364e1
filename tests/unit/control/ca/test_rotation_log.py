"""What the log says of a rotation."""

import logging
from pathlib import Path

import pytest

from meshlib.control.ca.authority import Authority

NOW = 1_800_000_000.0


def test_each_phase_is_logged_with_the_root_that_issues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Authority.open(tmp_path, trust_domain="cluster.local", now=NOW)
    old = made.fingerprint
    with caplog.at_level(logging.INFO):
        made.rotate_root(NOW, overlap_s=100, keep_s=100)
        made.reload(NOW + 100)
        made.reload(NOW + 200)
    new = made.fingerprint
    assert [one.getMessage() for one in caplog.records] == [
        f"a rotation begins: root {new} issues in 100 s",
        f"the roots or the issuer changed: announced; root {old} issues",
        f"the roots or the issuer changed: issuing; root {new} issues",
        f"the roots or the issuer changed: settled; root {new} issues",
    ]
