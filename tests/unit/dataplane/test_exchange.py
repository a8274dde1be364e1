"""A request through a sender, on a network that is no network."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.fake_mesh import FakeMesh, fake_mesh

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.drive import Answer, AsyncBody, Body, FlightFailed
from meshlib.dataplane.exchange import AsyncSender, Request, Sender
from meshlib.dataplane.flights import KINDS, flight_of, kind_of, words_of
from meshlib.dataplane.http.limits import Broken, TooSlow
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.network import Network
from meshlib.errors import ConnectFailed, ControlUnavailable

RETRY = {"retry_policy": {"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "5s"}}}
LOST = Failed(Failure.BROKEN_OFF, "lost")
Part = bytes | Need | Exception


class Response:
    """Its body is a script, of which `ready` gives all up to the first DATA."""

    version = b"HTTP/1.1"
    reason = b"OK"
    whole: bytes | None = None

    def __init__(self, status: int, parts: tuple[Part, ...]) -> None:
        self.head = ResponseHead(status)
        self.parts = list(parts)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    def ready(self) -> bytes | Need:
        if not self.parts:
            return Need.NOTHING
        part = self.parts[0]
        if isinstance(part, Exception):
            raise part
        if isinstance(part, bytes):
            self.parts.pop(0)
        return part

    async def more(self) -> None:
        part = self.parts.pop(0)
        assert part is Need.DATA
        if self.parts and isinstance(self.parts[0], TooSlow):
            raise self.parts[0]

    def close(self) -> None:
        self.closed = True


class Scripted:
    """Answers with what it was given, in turn, and keeps what it was asked."""

    def __init__(self, *answers: Response | Failed) -> None:
        self.answers = list(answers)
        self.sent: list[Attempt] = []
        self.slept: list[float] = []
        self.made = 0
        self.closed = False

    def network(self) -> Network:
        def connections(*_: object) -> Any:
            self.made += 1
            return self

        def aconnections(*_: object) -> Any:
            self.made += 1
            return _Async(self)

        async def asleep(seconds: float) -> None:
            self.slept.append(seconds)

        return Network(connections, aconnections, self.slept.append, asleep)

    def send(self, attempt: Attempt, body: Any, own: Any) -> Response | Failed:
        self.sent.append(attempt)
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.closed = True


class _Async:
    def __init__(self, scripted: Scripted) -> None:
        self.scripted = scripted

    async def send(self, attempt: Attempt, body: Any, own: Any) -> Response | Failed:
        return self.scripted.send(attempt, body, own)

    def close(self) -> None:
        self.scripted.closed = True


def asked(headers: Any = (), port: int = 9080, netloc: str = "reviews:9080") -> Request:
    return Request("GET", "http", ("reviews", port), netloc, "/a?b", headers)


def meshed(*answers: Response | Failed, **options: Any) -> tuple[FakeMesh, Scripted]:
    mesh, scripted = fake_mesh([1], **options), Scripted(*answers)
    mesh.network = scripted.network()  # type: ignore[assignment]
    return mesh, scripted


async def sent(kind: str, mesh: Any) -> Answer:
    if kind == "threads":
        return Sender(mesh).send(asked())
    return await AsyncSender(mesh).send(asked())


async def whole(answer: Answer) -> bytes:
    if isinstance(answer.body, Body):
        return b"".join(answer.body)
    assert isinstance(answer.body, AsyncBody)
    return b"".join([part async for part in answer.body])


kinds = pytest.mark.parametrize("kind", ["threads", "tasks"])


@pytest.mark.parametrize(
    ("headers", "netloc", "name", "authority"),
    [
        ([], "reviews:9080", "reviews:9080", "reviews:9080"),
        ([(b"HOST", b"Ratings")], "reviews:9080", "ratings:9080", "Ratings"),
        ([(b"host", b"ratings:1")], "reviews:9080", "ratings:9080", "ratings:1"),
        ([(b"host", b"")], "reviews:9080", "reviews:9080", "reviews:9080"),
        ([], "[::1]:9080", "[::1]:9080", "[::1]:9080"),
        ([], "reviews", "reviews:9080", "reviews"),
    ],
)
def test_the_name_is_the_hosts_and_the_urls_port(
    headers: Any, netloc: str, name: str, authority: str
) -> None:
    request = asked([*headers, (b"X-A", b"1")], netloc=netloc)
    assert (request.name, request.head.authority) == (name, authority)
    assert request.head.headers == [(b"X-A", b"1")]


@kinds
async def test_a_mesh_brings_its_own_network(kind: str) -> None:
    mesh, scripted = meshed(Response(503, ()), Response(200, (b"a", b"b")), route=RETRY)
    answer = await sent(kind, mesh)
    assert (answer.status, answer.facts.attempts) == (200, 2)
    assert await whole(answer) == b"ab"
    assert [attempt.number for attempt in scripted.sent] == [1, 2]
    assert len(scripted.slept) == 1
    assert mesh.in_flight() == 0


@kinds
async def test_a_failure_says_its_flight(kind: str) -> None:
    mesh, _ = meshed(Failed(Failure.CONNECT_FAILED, "refused"))
    with pytest.raises(FlightFailed) as raised:
        await sent(kind, mesh)
    assert kind_of(raised.value) is ConnectFailed
    assert words_of(raised.value) == "no connection: refused"
    assert flight_of(raised.value).cluster == "c"
    assert mesh.in_flight() == 0


def test_every_failure_but_one_is_an_error_of_the_application() -> None:
    assert set(Failure) - set(KINDS) == {Failure.OVERFLOW}  # which is a reply


async def test_connections_are_made_at_the_first_request_and_closed_once() -> None:
    mesh, scripted = meshed(*(Response(200, ()) for _ in range(4)))
    sender, tasks = Sender(mesh), AsyncSender(mesh)  # type: ignore[arg-type]
    sender.close()
    await tasks.aclose()
    assert (scripted.made, scripted.closed) == (0, False)
    sender = Sender(mesh)  # type: ignore[arg-type]
    for _ in range(2):
        sender.send(asked())
    assert scripted.made == 1
    sender.after_fork_in_child()
    assert scripted.closed
    sender.send(asked())
    assert scripted.made == 2
    await tasks.send(asked())
    assert scripted.made == 3


def test_the_mesh_is_found_at_the_first_request() -> None:
    mesh, _ = meshed(Response(200, ()))
    found: list[FakeMesh] = []

    def find() -> Any:
        found.append(mesh)
        return mesh

    sender = Sender(find)
    assert found == []
    assert sender.send(asked()).status == 200
    assert found == [mesh]


@kinds
async def test_a_lost_control_service_stops_nobody_who_encrypts_himself(kind: str) -> None:
    mesh, _ = meshed()
    mesh.failure = ControlUnavailable("away")
    request = Request("GET", "https", ("elsewhere", 443), "elsewhere", "/", ())
    if kind == "threads":
        Sender(mesh).admit(request)  # type: ignore[arg-type]
    else:
        await AsyncSender(mesh).admit(request)  # type: ignore[arg-type]


@kinds
async def test_what_has_come_is_finished_what_has_not_is_closed(kind: str) -> None:
    for parts, left in (
        ((b"a", b"b"), []),
        ((b"a", Need.DATA, b"b"), [Need.DATA, b"b"]),
        ((b"a", Broken(LOST)), None),
    ):
        response = Response(200, parts)
        mesh, _ = meshed(response)
        answer = await sent(kind, mesh)
        assert isinstance(answer.body, Body | AsyncBody)
        assert mesh.in_flight() == 1
        answer.body.finish()
        assert mesh.in_flight() == 0
        assert response.closed
        assert left is None or response.parts == left


async def test_a_body_read_at_ones_own_pace() -> None:
    mesh, _ = meshed(Response(200, (b"a", Need.DATA, b"b")))
    body = (await AsyncSender(mesh).send(asked())).body  # type: ignore[arg-type]
    assert isinstance(body, AsyncBody)
    assert [body.ready(), body.ready()] == [b"a", Need.DATA]
    await body.more()
    assert [body.ready(), body.ready()] == [b"b", Need.NOTHING]
    assert mesh.in_flight() == 0


@pytest.mark.parametrize("error", [Broken(LOST), TooSlow("read", 1.0)])
async def test_a_body_read_at_ones_own_pace_breaks_off(error: Exception) -> None:
    mesh, _ = meshed(Response(200, (Need.DATA, error)))
    body = (await AsyncSender(mesh).send(asked())).body  # type: ignore[arg-type]
    assert isinstance(body, AsyncBody)
    assert body.ready() is Need.DATA
    if isinstance(error, TooSlow):
        with pytest.raises(TooSlow):
            await body.more()
    else:
        await body.more()
        with pytest.raises(FlightFailed):
            body.ready()
    assert mesh.in_flight() == 0


def test_another_loop_begins_with_new_connections() -> None:
    mesh, scripted = meshed(*(Response(200, ()) for _ in range(3)))
    sender = AsyncSender(mesh)  # type: ignore[arg-type]

    async def twice() -> None:
        await sender.send(asked())

    asyncio.run(twice())
    asyncio.run(twice())
    assert scripted.made == 2
