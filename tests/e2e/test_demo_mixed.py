"""`meshlib demo --mixed` as a user runs it: Node.js and nginx beside Python. Captured it needs root."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.commands import MESHLIB

pytestmark = pytest.mark.timeout(180)
SPACES = Path("/run/netns")


def test_once_drives_the_scenarios_and_all_is_as_expected() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.patient_demo", "demo", "--mixed", "--once", "--no-capture"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 9 as expected" in done.stdout


@pytest.fixture
def short_path() -> Iterator[Path]:
    """pytest's own is too long for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="mixed-") as made:
        yield Path(made)


def test_captured_it_serves_the_page_and_a_signal_leaves_nothing_behind(short_path: Path) -> None:
    user = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    with subprocess.Popen(
        [*MESHLIB, "demo", "--mixed", "--port", "0"],
        env=user | {"TMPDIR": str(short_path), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            while "Ctrl-C" not in told:
                line = process.stdout.readline()
                assert line, f"the demo ended: {told}"
                told += line
            address = re.search(r"curl http://([\d.]+):9080/ratings/0", told)
            page = re.search(r"curl -H 'Host: xyz.com' (\S+)", told)
            assert page
            assert address
            names = [path.name for path in SPACES.iterdir()]
            assert f"meshlib-{address[1]}" in names
            answer = httpx.get(page[1], headers={"host": "xyz.com"}, trust_env=False, timeout=20)
            assert "Node.js" in answer.text
            assert "nginx" in answer.text
            hint = re.search(r"^ *(\S.* node list .*)$", told, re.MULTILINE)
            assert hint
            seen = subprocess.run(hint[1], shell=True, env=user, capture_output=True, text=True, timeout=60)
            assert seen.stdout.count("  ready") == 2, seen
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
    assert not (SPACES / f"meshlib-{address[1]}").exists()
    assert list(short_path.iterdir()) == []
