"""Formats of access logs taken apart, and which of them a real Envoy would refuse."""

import pytest

from meshlib.xds.accesslog import JSON, MOST_OPERATORS, TEXT, Operator, is_written, operators, pieces, wrong


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("", ()),
        ("a%%b", ("a%b",)),
        ("%A%", (Operator("A"),)),
        ("[%A%]%%", ("[", Operator("A"), "]%")),
        ("%A(b)%", (Operator("A", "b"),)),
        ("%A(b):3%", (Operator("A", "b", 3),)),
        ("%A:3%", (Operator("A", None, 3),)),
        ("%T(%s)% %T(%H:%M)%", (Operator("T", "%s"), " ", Operator("T", "%H:%M"))),
        ("%A()%", (Operator("A", ""),)),
        ("%A(b(c))%", (Operator("A", "b(c)"),)),
        ("%A(b) c)%", (Operator("A", "b) c"),)),
    ],
)
def test_pieces(form: str, found: tuple[str | Operator, ...]) -> None:
    assert pieces(form) == found
    assert "".join(str(p) if isinstance(p, Operator) else p.replace("%", "%%") for p in found) == form


@pytest.mark.parametrize("form", ["%", "%A", "%A(", "%A(b", "%A(b)", "%A(b):%", "%A(b):1", "%A:123456%"])
def test_no_format(form: str) -> None:
    with pytest.raises(ValueError, match="no operator begins at"):
        pieces(form)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (TEXT, ""),
        (JSON, ""),
        ({"a": {"b": ["%PROTOCOL%", 1, None, "%FILTER_STATE(a:PLAIN)%"]}}, ""),
        ("%START_TIME% %START_TIME(%s)% %REQ(A?B):10% %GRPC_STATUS% %PATH(NQ)%", ""),
        ("%NOBODY_KNOWS%", "no operator of Envoy"),
        ({"a": ["%NOBODY_KNOWS%"]}, "no operator of Envoy"),
        ("%PROTOCOL(x)%", "no operator of Envoy"),
        ("%FILTER_STATE%", "no operator of Envoy"),
        ("%REQ%", "does not say one header"),
        ("%REQ(A?B?C)%", "does not say one header"),
        ("%REQ(?B)%", "does not say one header"),
        ("50%", "no operator begins"),
        ("%PROTOCOL%" * (MOST_OPERATORS + 1), "more than"),
    ],
)
def test_what_is_wrong_with_a_format(form: object, reason: str) -> None:
    found = wrong(form)  # type: ignore[arg-type]
    assert reason in found
    assert bool(found) is bool(reason)


def test_what_is_written() -> None:
    form = "%PROTOCOL% %REQ(A)% %START_TIME(%s)% %GRPC_STATUS% %REQ% %PROTOCOL(x)%"
    assert [is_written(one) for one in operators(form)] == [True, True, True, False, False, False]
