"""`meshlib.testing` as a stranger uses it: pytest in a process of its own, on the project of the how-to."""

import re
import subprocess
import sys
from pathlib import Path

from support.installs import missing

PAGE = Path(__file__).parents[2] / "docs/how-to/test-with-faults.md"


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """With the plugins that a stranger has: xdist and this one."""
    others = ("asyncio", "benchmark", "cacheprovider", "hypothesispytest", "anyio", "timeout")
    without = [part for name in others for part in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", *without, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    return done.returncode, done.stdout + done.stderr


def test_every_example_of_the_how_to_passes(tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```(?:yaml|python)\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert [name for name, _ in blocks] == [
        *("mesh/ratings.yaml", "shop.py", "test_stars.py", "test_failures.py", "test_faults.py"),
        *("test_breaking.py", "test_page.py"),
    ]
    project = {name.removesuffix(".py") for name, _ in blocks}
    code = [text for name, text in blocks if name.endswith(".py")]
    assert missing(PAGE.read_text(), code) == project & {"shop"}
    for name, text in blocks:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    code, said = run(tmp_path, "-n", "1")
    assert code == 0, said
    assert "13 passed" in said


SAMPLE = '''
import shutil
import threading

import meshlib
import pytest


@pytest.fixture
def mesh_rules():
    return ["a.yaml"]


@pytest.fixture
def threads():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def get(url):
    with meshlib.Client() as client:
        return client.get(url).status_code


def test_swallowed(mesh):
    try:
        get("http://ratings/")
    except Exception:
        pass
    except AssertionError:
        raise SystemExit("swallowed as any exception is")


def test_seen(mesh):
    get("http://ratings/")


def test_meant(mesh):
    with pytest.raises(meshlib.testing.UnexpectedCall):
        get("http://ratings/")
    mesh.unexpected.clear()


@pytest.mark.mesh("b.yaml", namespace="shop")
class TestMarks:
    def test_both(self, mesh, threads):
        assert [document.name for document in mesh._stage.rules.documents.values()] == ["a", "b"]
        mesh.serve("ratings")
        assert get("http://ratings.shop/") == 200
        mesh.assert_called("ratings")

    @pytest.mark.mesh("""
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: c}
        spec: {hosts: [c], http: [{route: [{destination: {host: d, weight: 1}}]}]}
        """)
    def test_refused(self, mesh):
        pass


def test_assertion(mesh):
    mesh.serve("ratings")
    get("http://ratings/a")
    mesh.assert_called("ratings", times=2)
'''
RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {0}}}
spec: {{hosts: [{0}], http: [{{route: [{{destination: {{host: {0}}}}}]}}]}}
"""


def test_what_a_test_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(RULE.format(name))
    code, said = run(tmp_path, "-q", "--strict-markers", "-rA", "--tb=short")
    assert code == 1
    told = re.findall(r"^(PASSED|FAILED|ERROR) test_sample.py::(\S+)", said, re.MULTILINE)
    assert sorted(told) == [
        ("ERROR", "TestMarks::test_refused"),
        ("ERROR", "test_swallowed"),
        ("FAILED", "test_assertion"),
        ("FAILED", "test_seen"),
        ("PASSED", "TestMarks::test_both"),
        ("PASSED", "test_meant"),
        ("PASSED", "test_swallowed"),
    ], said
    assert said.count('Say what it answers: mesh.serve("ratings", 200)') >= 2
    assert "ratings was called once; expected: 2 times" in said
    assert re.search(
        r"ConfigError: Error \[IST0106\] \(VirtualService shop/c apply-1.yaml:\d\).*weight", said
    )


def test_the_plugin_costs_nothing_unless_a_test_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    print(sorted(m for m in sys.modules if m.partition('.')[0] == 'meshlib'))\n"
        "    print([m for m in ('httpx', 'pydantic', 'google.protobuf', 'yaml') if m in sys.modules])\n"
    )
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")
    code, said = run(tmp_path, "-q", "-s")
    assert code == 0, said
    loaded = "'meshlib', 'meshlib.errors', 'meshlib.testing', 'meshlib.testing.plugin', 'meshlib.values'"
    assert f"[{loaded}]\n[]\n" in said
