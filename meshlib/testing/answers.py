"""What a scripted upstream answers: responses and failures, one after the other; the last one stays.

| given | the upstream |
|---|---|
| a status, a `Response` | answers that |
| `ConnectionRefusedError`, another OSError | can't be connected to |
| `TimeoutError` | is not connected to within the connectTimeout |
| `ConnectionResetError`, `…AbortedError`, `BrokenPipeError` | loses the connection before it answers |
| a `Failure` | fails just so |
| a function of the `Call` | answers what that returns or raises, of the above |

An exception may be given as a class or as an object.
"""

import json as json_module
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from meshlib.core.request import Failed, Failure, Header
from meshlib.testing.clock import Duration, seconds_of

if TYPE_CHECKING:
    from meshlib.testing.calls import Call

_ALLOWED = "a status from 200 to 599, a Response, an OSError, a Failure, or a function of the call"
_UNSAID: Any = object()


class Response:
    """A response of a scripted upstream. Immutable."""

    __slots__ = ("breaks", "chunks", "delay", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        *,
        json: Any = _UNSAID,
        text: str | None = None,
        content: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        delay: Duration = 0.0,
        breaks: bool = False,
    ) -> None:
        """The body is one of `json`, `text` and `content`, which may be in pieces. The response comes after
        `delay` (of the mesh's clock); `breaks`: the connection is lost after the body, before it is whole.
        """
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status < 600:
            raise ValueError(f"found the status {status!r}; allowed is one from 200 to 599")
        if (json is not _UNSAID) + (text is not None) + (content != b"") > 1:
            raise TypeError("one of json, text and content is the body")
        kind = ""
        if json is not _UNSAID:
            content, kind = json_module.dumps(json).encode(), "application/json"
        elif text is not None:
            content, kind = text.encode(), "text/plain; charset=utf-8"
        self.status = status
        self.delay = seconds_of(delay)
        self.breaks = breaks
        self.chunks = tuple(
            chunk for chunk in ((content,) if isinstance(content, bytes) else content) if chunk
        )
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        self.headers = tuple(_complete([(n.encode(), v.encode("latin-1")) for n, v in pairs], kind, self))

    def __repr__(self) -> str:
        size = sum(map(len, self.chunks))
        late = f", after {self.delay:g} s" if self.delay else ""
        return f"<Response {self.status}, {size} bytes{late}{', then it breaks' if self.breaks else ''}>"


def _complete(headers: list[Header], kind: str, of: Response) -> list[Header]:
    names = {name.lower() for name, _ in headers}
    if kind and b"content-type" not in names:
        headers.append((b"content-type", kind.encode()))
    if b"content-length" not in names and not of.breaks and of.status not in (204, 304):
        headers.append((b"content-length", b"%d" % sum(map(len, of.chunks))))
    return headers


Answer = int | Response | Failure | OSError | type[OSError] | Callable[["Call"], Any]


def checked(answer: Any, **response: Any) -> Any:
    """The answer, a status made a Response with that body. TypeError, ValueError: it is none."""
    if isinstance(answer, int):
        return Response(answer, **response)
    if response:
        raise TypeError(f"{', '.join(response)} say more of a status, and the answer is {answer!r}")
    if isinstance(answer, type) and issubclass(answer, OSError):
        return answer()
    if isinstance(answer, Response | Failure | OSError) or (
        callable(answer) and not isinstance(answer, type)
    ):
        return answer
    raise TypeError(f"found the answer {answer!r}; allowed is {_ALLOWED}")


class Script:
    """Answers in order. Thread-safe."""

    def __init__(self, answers: Iterable[Any] = (), **response: Any) -> None:
        """`response` is said of the only status; none at all is a 200."""
        given = list(answers) or [200]
        if response and len(given) > 1:
            raise TypeError(f"{', '.join(response)} say more of one answer; of several make Responses")
        self._answers = [checked(answer, **response) for answer in given]
        self._at = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Script: {', '.join(map(repr, self._answers[self._at :]))}>"

    def next(self, call: "Call") -> "Response | Failed":
        """The answer to a call. What a function raises that is no OSError goes up to who calls."""
        with self._lock:
            answer = self._answers[self._at]
            self._at = min(self._at + 1, len(self._answers) - 1)
        return outcome(answer, call)


def outcome(answer: Any, call: "Call") -> "Response | Failed":
    """What an answer comes to."""
    if callable(answer):
        try:
            answer = checked(answer(call))
        except OSError as error:
            answer = error
        if callable(answer):
            raise TypeError(f"found {answer!r} as the answer of a function; allowed is no other one")
    if isinstance(answer, Failure):
        return Failed(answer, answer.value)
    if isinstance(answer, OSError):
        return Failed(_how(answer), str(answer) or type(answer).__name__)
    assert isinstance(answer, Response)  # noqa: S101 - what `checked` lets through
    return answer


def _how(error: OSError) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure.CONNECT_TIMED_OUT
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return Failure.RESET
    return Failure.CONNECT_FAILED
