"""`meshlib demo` as a user runs it: it comes up, drives its scenarios, and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.commands import MESHLIB, wait_until
from support.commands import process as command
from support.ports import free_port

pytestmark = pytest.mark.timeout(180)


def children(parent: int) -> list[int]:
    """The processes that a process started and that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def demo(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """A running demo, its page's address, and what it printed."""
    port = free_port()
    process = subprocess.Popen(
        [*MESHLIB, "demo", "--port", str(port), "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    page = f"http://127.0.0.1:{port}/productpage"
    try:
        assert process.stdout is not None
        told = ""
        while "Ctrl-C" not in told:
            line = process.stdout.readline()
            assert line, f"the demo ended: {told}"
            told += line
        yield process, page, told
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_once_drives_the_scenarios_and_all_is_as_expected() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.patient_demo", "demo", "--once"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = re.search(r"all (\d+) as expected in (\d+) s", done.stdout)
    assert verdict, done.stdout
    assert int(verdict[1]) == 18


def test_a_taken_port_is_named_with_the_option_to_choose_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("demo", "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 can't be used" in done.stderr
    assert f"choose another: --port {port + 1}, for example" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.stderr


def test_a_signal_ends_it_all(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, page, _):
        assert len(children(process.pid)) == 7
        assert "The Comedy of Errors" in httpx.get(page, trust_env=False, timeout=20).text
        ends_all(process, signal.SIGINT, page)


def ends_all(process: "subprocess.Popen[str]", number: signal.Signals, page: str) -> None:
    """The signal ends the demo and its children, and the port is free again."""
    started = children(process.pid)
    assert started
    process.send_signal(number)
    assert process.wait(30) == 0
    assert [child for child in started if alive(child)] == []
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(page.split(":")[2].split("/")[0])))


def test_what_it_suggests_works_and_kill_leaves_no_process_behind(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, _, told):
        user = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        hints = re.findall(r"^ *(\S.* (?:explain|status) .*)$", told, re.MULTILINE)
        assert len(hints) == 2
        for hint in hints:
            done = subprocess.run(hint, shell=True, env=user, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (hint, done.stderr)
        started = children(process.pid)
        assert started
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        wait_until(lambda: not any(map(alive, started)), 30, "the children to end")


def test_a_child_that_ends_is_shown_with_its_last_words_and_a_signal_ends_the_others(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, page, _):
        log = (tmp_path / "logs" / "reviews-v1.log").read_text()
        assert log.startswith("reviews v1 at http://127.0.0.1:")
        victim = next(
            child
            for child in children(process.pid)
            if b"reviews\0--version\0v1" in Path(f"/proc/{child}/cmdline").read_bytes()
        )
        os.kill(victim, signal.SIGKILL)
        assert process.stdout is not None
        line = process.stdout.readline()
        while "reviews v1 was ended by SIGKILL" not in line:
            line = process.stdout.readline()
            assert line
        text = httpx.get(page, trust_env=False, timeout=20).text
        assert "Sorry, product reviews are currently unavailable" in text
        ends_all(process, signal.SIGTERM, page)
