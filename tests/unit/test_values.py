"""Frozen values are what the standard library makes of the same class."""

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from meshlib.core.mtls import ClientTls
from meshlib.values import dataclass


def _classes(make: Any) -> dict[str, Any]:
    @make(frozen=True, slots=True)
    class Plain:
        """Given by place and by name, with defaults."""

        name: str
        port: int = 80
        labels: tuple[str, ...] = ()

    @make(frozen=True, slots=True)
    class Odd:
        """All that a field can be."""

        name: str
        made: dict[str, int] = field(default_factory=dict, compare=False)
        secret: str = field(default="x", repr=False)
        fixed: int = field(init=False, default=3)
        fresh: list[int] = field(init=False, default_factory=list, compare=False)
        size: int = field(init=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "size", len(self.name))

    @make(frozen=True, slots=True)
    class Nothing:
        """No fields."""

    @make(frozen=True, slots=True)
    class Own:
        """Methods of its own."""

        name: str

        def __repr__(self) -> str:
            return f"<{self.name}>"

        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            return True

    return {made.__name__: made for made in (Plain, Odd, Nothing, Own)}


OURS, THEIRS = _classes(dataclass), _classes(dataclasses.dataclass)
VALUES: list[Callable[[dict[str, Any]], Any]] = [
    lambda of: of["Plain"]("a"),
    lambda of: of["Plain"]("a", 81),
    lambda of: of["Plain"](labels=("b",), name="a"),
    lambda of: of["Odd"]("a"),
    lambda of: of["Odd"]("a", {"b": 1}),
    lambda of: of["Odd"]("a", secret="y"),
    lambda of: of["Nothing"](),
    lambda of: of["Own"]("a"),
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_shows_itself_and_is_taken_apart_as_the_standard_library_does_it(value: Any) -> None:
    ours, theirs = value(OURS), value(THEIRS)
    assert repr(ours) == repr(theirs)
    assert hash(ours) == hash(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert type(ours).__match_args__ == type(theirs).__match_args__
    assert type(ours).__slots__ == type(theirs).__slots__
    assert copy.copy(ours) == ours
    assert copy.deepcopy(ours) == ours
    assert dataclasses.replace(ours) == ours


@pytest.mark.parametrize("one", VALUES)
@pytest.mark.parametrize("other", VALUES)
def test_values_are_equal_where_the_standard_library_has_them_equal(one: Any, other: Any) -> None:
    assert (one(OURS) == other(OURS)) is (one(THEIRS) == other(THEIRS))


@pytest.mark.parametrize("of", [OURS, THEIRS])
def test_what_is_wrong_is_told_alike(of: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Plain\.__init__\(\) missing 1 required positional argument"):
        of["Plain"]()
    with pytest.raises(TypeError, match=r"Plain\.__init__\(\) got an unexpected keyword argument 'host'"):
        of["Plain"]("a", host="b")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'port'"):
        of["Plain"]("a").port = 1
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'port'"):
        del of["Plain"]("a").port


@pytest.mark.parametrize("make", [dataclass, dataclasses.dataclass])
def test_a_default_that_all_would_share_is_refused(make: Any) -> None:
    class Shared:
        """One of them."""

        names: list[str] = []  # noqa: RUF012

    with pytest.raises(ValueError, match="mutable default"):
        make(frozen=True, slots=True)(Shared)


def test_a_value_is_of_its_own_class_only() -> None:
    assert OURS["Plain"]("a") != THEIRS["Plain"]("a")
    assert OURS["Nothing"]() != ()


def test_a_value_travels_to_another_process() -> None:
    tls = ClientTls(sni="a")
    again = pickle.loads(pickle.dumps(tls))
    assert again == tls
    assert hash(again) == hash(tls)


def test_methods_are_compiled_when_they_are_first_called_whatever_comes_first() -> None:
    one, other, third = (_classes(dataclass)["Plain"] for _ in range(3))
    assert hash(one("a")) == hash(one("a"))
    assert other("a") == other("a")
    made = third.__new__(third)
    made.__setstate__(["a", 80, ()])
    assert made == third("a")
    for kind in (one, other, third):
        assert kind.__init__.__qualname__ == f"{kind.__qualname__}.__init__"
        assert kind.__init__.__module__ == __name__


def test_threads_that_come_first_make_the_same() -> None:
    for _ in range(20):
        plain = _classes(dataclass)["Plain"]
        barrier = threading.Barrier(4)

        def make(plain: Any = plain, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait(30)
            return plain("a", labels=("b",))

        with ThreadPoolExecutor(4) as pool:
            found = [each.result() for each in [pool.submit(make) for _ in range(4)]]
        assert len(set(found)) == 1


def test_a_class_may_be_derived_from_one() -> None:
    plain = OURS["Plain"]
    for make in (dataclass, dataclasses.dataclass):

        @make(frozen=True, slots=True)
        class More(plain):
            """With a field more."""

            zone: str = ""

        made: Any = More("a", zone="b")
        assert (made.name, made.zone) == ("a", "b")
        with pytest.raises(FrozenInstanceError):
            made.zone = "c"


def test_another_kind_of_class_is_the_standard_librarys() -> None:
    @dataclass
    class Open:
        """One that changes."""

        name: str = ""

    one = Open()
    one.name = "a"
    assert one == Open("a")
    assert Open.__hash__ is None
