"""CEL: what is taken and what it is, and what is refused and where."""

import pytest

from meshlib.xds import cel
from meshlib.xds.cel import Apply, Attribute, Header, Kind, Literal

CODE = Attribute("response.code", Kind.NUMBER)


def number(value: float) -> Literal:
    return Literal(value, Kind.NUMBER)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("response.code >= 400", Apply(">=", (CODE, number(400)), Kind.BOOL)),
        (
            "1 + 2 * 3 - 4 == 3",
            Apply(
                "==",
                (
                    Apply(
                        "-",
                        (
                            Apply(
                                "+",
                                (number(1), Apply("*", (number(2), number(3)), Kind.NUMBER)),
                                Kind.NUMBER,
                            ),
                            number(4),
                        ),
                        Kind.NUMBER,
                    ),
                    number(3),
                ),
                Kind.BOOL,
            ),
        ),
        (
            "request.headers['x-a'] == \"it\\'s\"",
            Apply(
                "==",
                (
                    Header("request.headers", Literal("x-a", Kind.TEXT)),
                    Literal("it's", Kind.TEXT),
                ),
                Kind.BOOL,
            ),
        ),
        (
            "has(request.headers.referer)",
            Apply("has", (Header("request.headers", Literal("referer", Kind.TEXT)),), Kind.BOOL),
        ),
        ("request.duration > duration('1m1.5s')", None),
        ("!(connection.mtls) && true || false", None),
        ("request.path.startsWith('/a') ? response.code == 418u : -1 < 0", None),
        ("request.method in ['GET', 'HEAD'] && 'x' in request.headers", None),
        ("size(request.path) % 2 == 1", None),
        ("request.path.matches('^/a/.*$')", None),
        (" \n true", None),
    ],
)
def test_what_is_taken(text: str, tree: cel.Node | None) -> None:
    found = cel.condition(text)
    assert found.kind is Kind.BOOL
    assert tree is None or found == tree


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a value is expected at 1"),
        ("response.code", "it is a number, not true or false"),
        ("response.code >", "a value is expected at 16"),
        ("response.code > '4'", "number > text does not fit"),
        ("response.", "a name is expected at 10"),
        ("'a'.", "a name is expected at 5"),
        ("response.code == 400 400", "nothing more is expected at 22"),
        ("response.codes == 400", "the attribute response.codes is not supported at 10"),
        ("nope.nope.nope.nope == 1", "the attribute nope.nope.nope is not supported"),
        ("response.grpc_status == 0", "response.grpc_status is not supported"),
        ("request.path.upper() == 'A'", "one of the methods"),
        ("request.path.startsWith(1)", "text.startsWith(number) does not fit"),
        ("request.path.matches('(')", "is not an RE2 pattern"),
        ("request.path.matches(request.host)", "is not a literal"),
        ("request.headers[1] == ''", r"request.headers[number] does not fit"),
        ("request.headers == 'x'", "headers == text does not fit"),
        ("string(response.code) == '4'", "string(number) is not supported"),
        ("duration('5') > request.duration", "is no duration"),
        ("duration('1.2.3s') > request.duration", "is no duration"),
        ("'abc == 'x'", "the text that begins at 11 has no end"),
        ("'abc", "has no end"),
        ("'\\x41' == 'A'", "the escape"),
        ("'''a''' == 'a'", "three quotation marks"),
        ("a # b", "'#' at 3 is not expected"),
        ("1.2.3 < 4", "'1.2.3' is no number"),
        ("9223372036854775808 > 0", "too large"),
        ("!1", "! of a number does not fit"),
        ("-'a' == 'b'", "- of a text does not fit"),
        ("true ? 1 : 'a'", "does not fit"),
        ("size(1) == 1", "size(number) is not supported"),
        ("[1, 2", "',' is expected at 6"),
        ("(true", "')' is expected"),
        ("(" * 60 + "true" + ")" * 60, "deeper than 50"),
        ("!" * 60 + "true", "deeper than 50"),
        ("1" + " + 1" * 300 + " > 0", "more than 500"),
        ("'" + "a" * 5000 + "' == ''", "more than 4096"),
        ("{'a': 1}['a'] == 1", "'{' at 1 is not expected"),
        ("\N{ARABIC-INDIC DIGIT ONE} == 1", "is not expected"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as refused:
        cel.condition(text)
    assert reason in str(refused.value)


def test_further_functions_are_asked_for() -> None:
    assert cel.parse("string(response.code)", "string") == Apply("string", (CODE,), Kind.TEXT)
