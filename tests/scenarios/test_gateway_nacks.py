"""What a gateway is sent, of the example and of each golden case with one, is accepted by a real Envoy."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.envoy_client import envoy
from support.mesh_cases import EDGE_LABELS, MeshCase, mesh_cases, write_certificates
from support.stage import As, Change, Refusal, Stage

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

ENVOYS = {"gateway-sotw": False, "gateway-delta": True}
"""Node ids, and whether the protocol is the incremental one."""
CASES = [
    replace(case, who=replace(case.who, labels=EDGE_LABELS))
    for case in mesh_cases()
    if "kind: Gateway\n" in case.text
]


class Play:
    """The stage, and what the cases call /certs."""

    def __init__(self, stage: Stage, files: Path) -> None:
        self.stage, self.files, self.count = stage, files, 0

    def refused(self, case: MeshCase, change: Change = lambda found: found) -> list[Refusal]:
        """Serves a case; every NACK."""
        self.count += 1
        case = replace(case, text=case.text.replace("/certs/", f"{self.files}/"))
        compiler = GraphCompiler(case.graph(), f"{int(time.time() * 1000)}.{self.count}")
        self.stage.publish(As(compiler, case.who, change))
        self.stage.wait_for_answers(ENVOYS, (), 60)
        return self.stage.refusals()


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    folder = tmp_path_factory.mktemp("certs")
    write_certificates(folder)
    with (
        Stage() as stage,
        envoy(stage.address, False, "gateway-sotw", "gateway"),
        envoy(stage.address, True, "gateway-delta", "gateway"),
    ):
        yield Play(stage, folder)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_accepted(play: Play, case: MeshCase) -> None:
    refused = play.refused(case)
    assert not refused, "\n".join([*map(str, refused), case.text])


def without_filters(resource: Resource) -> Resource:
    if resource.kind is not Kind.LISTENER:
        return resource
    message = resource.message()
    del message.filter_chains[0].filters[:]
    message.filter_chains[0].filters.add(name="nothing").typed_config.type_url = "type.googleapis.com/none"
    return Resource.of(resource.kind, resource.name, message)


def test_a_bad_listener_is_noticed(play: Play) -> None:
    refused = play.refused(CASES[0], without_filters)
    assert {one.client for one in refused} == set(ENVOYS)
    assert {one.kind for one in refused} == {Kind.LISTENER}
