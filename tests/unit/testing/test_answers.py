"""What a script says an upstream answers, and what of it is refused."""

from typing import Any

import pytest

from meshlib.core.request import Failed, RequestHead
from meshlib.testing import Call, Failure, Response
from meshlib.testing.answers import Script

CALL = Call(RequestHead("GET", "http", "a", "/"), b"", "a", "a.b", 80, "", "1.2.3.4:80", {})


def test_a_response_says_what_its_body_is() -> None:
    found = Response(201, json={"a": 1}, headers={"x-a": "b"})
    assert found.status == 201
    assert found.headers == (
        (b"x-a", b"b"),
        (b"content-type", b"application/json"),
        (b"content-length", b"8"),
    )
    assert Response(text="ä").headers[0] == (b"content-type", b"text/plain; charset=utf-8")
    assert Response(content=[b"a", b"", b"bc"]).chunks == (b"a", b"bc")
    assert Response(headers=[("Content-Length", "7")]).headers == ((b"Content-Length", b"7"),)
    assert Response(204).headers == ()
    assert Response(json=None).chunks == (b"null",)
    assert repr(Response(503, text="no", delay="2s", breaks=True)) == (
        "<Response 503, 2 bytes, after 2 s, then it breaks>"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"status": 99}, {"status": True}, {"status": "200"}, {"delay": "x"}, {"delay": -1}],
)
def test_a_response_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed is"):
        Response(**wrong)


def test_a_response_has_one_body() -> None:
    with pytest.raises(TypeError, match="one of json, text and content"):
        Response(json=1, text="a")


def test_answers_come_in_order_and_the_last_stays() -> None:
    script = Script([503, Failure.REFUSED_STREAM, ConnectionResetError, TimeoutError(), lambda call: 201])
    assert repr(script).startswith("<Script: <Response 503, 0 bytes>, <Failure.REFUSED_STREAM")
    got = [script.next(CALL) for _ in range(6)]
    assert [one.status if isinstance(one, Response) else one.how for one in got] == [
        *(503, Failure.REFUSED_STREAM, Failure.RESET, Failure.CONNECT_TIMED_OUT, 201, 201)
    ]


def test_a_function_gives_or_raises_the_answer() -> None:
    def refuse(call: Call) -> int:
        raise ConnectionRefusedError(f"nobody at {call.endpoint}")

    assert Script([refuse]).next(CALL) == Failed(Failure.CONNECT_FAILED, "nobody at 1.2.3.4:80")
    with pytest.raises(ZeroDivisionError):
        Script([lambda call: 1 // 0]).next(CALL)
    with pytest.raises(TypeError, match="found the answer None"):
        Script([lambda call: None]).next(CALL)
    with pytest.raises(TypeError, match="no other one"):
        Script([lambda call: lambda call: 200]).next(CALL)


@pytest.mark.parametrize("wrong", [None, "200", 2.0, {"a": 1}, ValueError, ValueError("x"), object, 42])
def test_what_is_no_answer_is_refused_when_it_is_given(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="allowed is"):
        Script([wrong])


def test_what_is_said_of_one_answer_is_not_said_of_several() -> None:
    with pytest.raises(TypeError, match="of several make Responses"):
        Script([200, 503], json=1)
    with pytest.raises(TypeError, match="json say more of a status"):
        Script([TimeoutError], json=1)
