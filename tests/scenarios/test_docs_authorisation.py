"""What the reference of authorisation and the tutorial say of policies and tokens is true when it is done."""

import re
from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib.control.sources.text import documents_in
from meshlib.core.actions import Reply
from meshlib.core.inbound import Admitted
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.gate import Gate

DOCS = Path(__file__).parents[2] / "docs"
PEER = Peer(("127.0.0.1", 40000), ("127.0.0.1", 9080))


def blocks(page: str, kind: str) -> list[str]:
    found: list[str] = re.findall(
        rf"^```{kind}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    )
    return found


def test_the_documents_of_the_reference_are_valid() -> None:
    texts = blocks("reference/authorisation.md", "yaml")
    assert len(texts) == 3
    read = documents_in("\n---\n".join(texts), "docs.yaml")
    assert len(read.documents) == 6
    assert [str(problem) for problem in read.problems if "denies all of TCP" not in problem.message] == []


@pytest.mark.parametrize(("path", "bare"), [("/api/v1/products", 403), ("/productpage", 0)])
def test_the_tokens_of_the_tutorial(tmp_path: Path, path: str, bare: int) -> None:
    (code,) = [block for block in blocks("tutorial.md", "python") if "ECKey" in block]
    (tmp_path / "mesh").mkdir()
    exec(compile(code.replace("/tmp/", f"{tmp_path}/"), "tutorial.md", "exec"), {})
    token = (tmp_path / "token").read_text()
    with meshlib.connect(str(tmp_path / "mesh"), labels="app=productpage") as mesh:
        gate = Gate(mesh, 9080)
        gate.prepare()

        def ask(*headers: tuple[bytes, bytes]) -> Any:
            return gate.admit(RequestHead("GET", "http", "h", path, list(headers)), PEER)

        found, bad = ask(), ask((b"authorization", b"Bearer nonsense"))
        good = ask((b"authorization", f"Bearer {token}".encode()))
    assert (found.status if isinstance(found, Reply) else 0) == bare
    assert isinstance(bad, Reply)
    assert (bad.status, bad.body.decode()) in [
        (401, line) for line in blocks("tutorial.md", "console")[-2].split("\n")
    ]
    assert isinstance(good, Admitted)
    assert good.caller.request_principal == "https://issuer.example/jason"
