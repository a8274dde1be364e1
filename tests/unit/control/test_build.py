"""The trust domain in which certificates are signed counts, whatever the documents ask for."""

import pytest

from meshlib.control.build import Builder
from meshlib.control.sources.source import MemorySource

CONFIG = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
trustDomainAliases: [old.example]
"""


@pytest.mark.parametrize(
    ("asked", "aliases", "warned"),
    [
        ("", ("old.example",), False),
        ("trustDomain: run.example", ("old.example",), False),
        ("trustDomain: Run@Example", ("old.example",), False),
        ("trustDomain: new.example", ("old.example", "new.example"), True),
        ("trustDomain: old.example", ("old.example",), True),
    ],
)
def test_what_is_asked_for_is_an_alias_until_the_next_start(
    asked: str, aliases: tuple[str, ...], warned: bool
) -> None:
    built = Builder(trust_domain="run.example")(MemorySource(CONFIG + asked).load(), (), "1")
    assert built.mesh is not None
    assert built.mesh.trust_domain.replace("@", ".").lower() == "run.example"
    assert built.mesh.trust_domain_aliases == aliases
    assert [problem.code for problem in built.problems] == ["MESH0004"] * warned


def test_without_an_authority_the_documents_count() -> None:
    built = Builder()(MemorySource(CONFIG + "trustDomain: new.example").load(), (), "1")
    assert built.mesh is not None
    assert (built.mesh.trust_domain, built.problems) == ("new.example", ())
