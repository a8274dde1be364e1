"""What upstreams were sent: each try of a request, and each copy of one, is a call."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from meshlib.core.request import Failure, RequestHead


class UnexpectedCall(AssertionError):
    """The code under test called what nobody serves in this test."""


class Headers(Mapping[str, str]):
    """Headers by name, in whatever case; several of a name joined with a comma."""

    def __init__(self, head: RequestHead) -> None:
        self._index = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.index.items()}

    def __getitem__(self, name: str) -> str:
        return self._index[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return repr(self._index)


class Call:
    """One try of a request, or one copy of it, as an upstream saw it."""

    __slots__ = (
        *("at", "attempt", "authority", "content", "endpoint", "headers", "host", "labels", "method"),
        *("mirrored", "outcome", "path", "port", "scheme", "service", "subset", "tls"),
    )

    def __init__(
        self,
        head: RequestHead,
        content: bytes,
        service: str,
        host: str,
        port: int,
        subset: str,
        endpoint: str,
        labels: Mapping[str, str],
        *,
        attempt: int = 1,
        mirrored: bool = False,
        tls: bool = False,
        at: float = 0.0,
    ) -> None:
        self.method, self.scheme, self.authority, self.path = (
            head.method,
            head.scheme,
            head.authority,
            head.path,
        )
        """`path` with its query."""
        self.headers = Headers(head)
        self.content = content
        self.service = service
        """As the test says it: `ratings`."""
        self.host = host
        """In full: `ratings.default.svc.cluster.local`."""
        self.port = port
        """Of the service."""
        self.subset = subset
        self.endpoint = endpoint
        """`address:port`."""
        self.labels = dict(labels)
        """Of the endpoint."""
        self.attempt = attempt
        """1 for the first try."""
        self.mirrored = mirrored
        self.tls = tls
        """Whether the mesh would have encrypted it."""
        self.at = at
        """When it came, on the mesh's clock."""
        self.outcome: int | Failure | None = None
        """The status, or how it failed; None: nothing (yet)."""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.content.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)

    def __repr__(self) -> str:
        came = "nothing yet" if self.outcome is None else _short(self.outcome)
        more = [f"subset {self.subset}"] if self.subset else []
        more += [self.endpoint] if self.endpoint else []
        more += [f"try {self.attempt}"] if self.attempt > 1 else []
        more += ["mirrored"] if self.mirrored else []
        return f"<Call {self.method} {self.service}:{self.port}{self.path} → {came} ({', '.join(more)})>"


def _short(outcome: int | Failure) -> str:
    return outcome.name if isinstance(outcome, Failure) else str(outcome)


def differs(call: Call, wanted: Mapping[str, Any]) -> str:
    """In what a call is not as wanted; empty: it is. TypeError: no call has that."""
    for name, value in wanted.items():
        found = _found(call, name, value)
        if found != value:
            return f"{name} is {found!r}"
    return ""


def _found(call: Call, name: str, value: Any) -> Any:
    match name:
        case "headers":
            return {key: call.headers.get(key) for key in value}
        case "labels":
            return {key: call.labels.get(key) for key in value}
        case "path" if "?" not in value:
            return call.path.partition("?")[0]
        case "json":
            try:
                return call.json()
            except ValueError:
                return call.content
        case "content" | "text" | "method" | "path" | "subset" | "endpoint" | "attempt" | "mirrored":
            return getattr(call, name)
        case "port" | "authority" | "outcome" | "tls":
            return getattr(call, name)
        case _:
            raise TypeError(
                f"no call has {name!r}; it has attempt, authority, content, endpoint, headers, json, labels, "
                "method, mirrored, outcome, path, port, subset, text and tls"
            )


def matching(calls: Iterable[Call], wanted: Mapping[str, Any]) -> list[Call]:
    """The calls that are as wanted; a value that is None is not asked for."""
    asked = {name: value for name, value in wanted.items() if value is not None}
    return [call for call in calls if not differs(call, asked)]


def told(
    service: str, calls: Sequence[Call], wanted: Mapping[str, Any], expected: str, others: Sequence[str]
) -> str:
    """What was called, for the message of an assertion that failed; `others` were called, too."""
    asked = {name: value for name, value in wanted.items() if value is not None}
    found = len(matching(calls, asked))
    how = f" with {', '.join(f'{name}={value!r}' for name, value in asked.items())}" if asked else ""
    lines = [
        f"{service} was {f'called {_times(found)}' if found else 'not called'}{how}; expected: {expected}"
    ]
    if not calls:
        lines.append(f"Called were: {', '.join(others) or 'none at all'}")
    for number, call in enumerate(calls, 1):
        why = differs(call, asked)
        lines.append(f"  {number}. {call!r}{f': {why}' if why else ''}")
    return "\n".join(lines)


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def spelled(times: int | None) -> str:
    """A number of calls, in words; None: one or more."""
    return "at least once" if times is None else _times(times)
