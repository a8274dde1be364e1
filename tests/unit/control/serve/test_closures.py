"""What is compiled when a client asks for more, fewer and the same."""

from collections.abc import Iterable

import pytest

from meshlib.control.serve import closures as module
from meshlib.control.serve.closures import Closures
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource


class Compiler:
    """A listener and one shared cluster for each name; the roots for everyone."""

    version = "5.1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        self.asked.append(tuple(sorted(listeners)))
        yield Resource.of(Kind.SECRET, "roots", pb.Secret(name="roots"))
        for name in listeners:
            yield Resource.of(Kind.LISTENER, name, pb.Listener(name=name))
            yield Resource.of(Kind.CLUSTER, "shared", pb.Cluster(name="shared"))


ME, OTHER = Client(Flavour.MESHLIB), Client(Flavour.GRPC)


def test_one_more_costs_one_more() -> None:
    compiler = Compiler()
    closures = Closures(compiler)
    assert closures.snapshot(ME, frozenset()).names(Kind.SECRET) == {"roots"}
    first = closures.snapshot(ME, frozenset({"a", "b"}))
    more = closures.snapshot(ME, frozenset({"a", "b", "c"}))
    fewer = closures.snapshot(ME, frozenset({"b"}))
    assert compiler.asked == [(), ("a",), ("b",), ("c",)]
    assert (first.version, more.version) == ("5.1", "5.1")
    assert more.names(Kind.LISTENER) == {"a", "b", "c"}
    assert (fewer.names(Kind.LISTENER), fewer.names(Kind.SECRET)) == ({"b"}, {"roots"})
    assert first.get(Kind.CLUSTER, "shared") is fewer.get(Kind.CLUSTER, "shared")


def test_an_envoy_is_sent_everything_at_once() -> None:
    compiler = Compiler()
    Closures(compiler).snapshot(Client(Flavour.ENVOY), frozenset())
    assert compiler.asked == [()]


def test_what_nobody_asks_for_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE", 1)
    compiler = Compiler()
    closures = Closures(compiler)
    for name in "abcdca":
        closures.snapshot(ME, frozenset({name}))
    assert compiler.asked == [("a",), ("b",), ("c",), ("d",), ("c",), ("a",)]
    closures.keep({OTHER})
    closures.snapshot(ME, frozenset({"a"}))
    assert compiler.asked[6:] == [("a",)]
