"""The law of the layout: what is not checked here, or by ruff, mypy and import-linter, is not a rule."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for folder in ("meshlib", "integrations", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
TOP_LEVEL = {"pyproject.toml", "README.md", "meshlib", "integrations", "examples", "tests", "docs"}
FILE_LIMIT = 600
NAMES_OF_NOTHING = {"utils", "util", "common", "helpers", "base", "manager", "misc"}


def tracked() -> list[str]:
    return subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_top_level_holds_what_was_agreed() -> None:
    found = {name.split("/")[0] for name in tracked()}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_house_style(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LIMIT, "split it by idea"
    assert path.stem not in NAMES_OF_NOTHING, "name it after what it decides or does"
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    if path.stat().st_size:
        assert docstring, "say what is decided or done here"
        assert len(docstring) > 20, "say what is decided or done here"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_documented(path: Path) -> None:
    bare = [
        f"{path.name}:{node.lineno} {node.name}"
        for parent in [ast.parse(path.read_text())]
        for node in ast.iter_child_nodes(parent)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def test_no_file_is_about_two_planes() -> None:
    """Nothing in control is named `decode`, nothing in the data plane `compile`."""
    wrong = [
        n
        for n in tracked()
        if re.match(r"meshlib/control/.*decode", n) or re.match(r"meshlib/(dataplane|core)/.*compile", n)
    ]
    assert wrong == []


def test_users_patterns_never_reach_pythons_re() -> None:
    """RE2 alone sees a user's pattern: core, data plane and compiler do not import `re`."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SHIPPED
        if path.is_relative_to(ROOT / "meshlib/core") or path.is_relative_to(ROOT / "meshlib/dataplane")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name == "re" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "re")
    ]
    assert found == []


def test_import_is_light() -> None:
    """`import meshlib` loads no gRPC, protobuf, HTTP client or YAML: work starts at first use."""
    heavy = ("grpc", "google.protobuf", "httpx", "httpcore", "yaml", "pydantic", "typer", "asyncio", "ssl")
    code = f"import sys, meshlib; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_change_fragment_is_named_and_not_empty() -> None:
    fragments = list((ROOT / "docs/changes").glob("*.md"))
    assert fragments
    assert [f.name for f in fragments if len(f.read_text()) < 40] == []
