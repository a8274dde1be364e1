"""What happens to a request whose upstream is scripted: retries, limits, ejections, copies; in no time."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.errors import ConnectFailed, ConnectTimedOut, UpstreamReset, UpstreamTimedOut
from meshlib.testing import Failure, Response, ScriptedMesh, Stuck, clock

URL = "http://ratings:9080/"
HTTP = "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: ratings}}\nspec: "


def virtual(more: str) -> str:
    return HTTP.format(kind="VirtualService") + (
        f"{{hosts: [ratings], http: [{{route: [{{destination: {{host: ratings}}}}], {more}}}]}}"
    )


def destination(policy: str) -> str:
    return HTTP.format(kind="DestinationRule") + f"{{host: ratings, trafficPolicy: {policy}}}"


RETRIES = virtual(
    "retries: {attempts: 2, retryOn: 'connect-failure,reset,5xx', perTryTimeout: 2s}, timeout: 5s"
)
RETRY_ONCE = "retries: {attempts: 1, retryOn: 5xx, perTryTimeout: 1s, backoff: 1ms}, timeout"
NO_RETRIES = virtual("retries: {attempts: 0}, timeout: 5s")


@pytest.fixture
def client() -> Iterator[meshlib.Client]:
    with meshlib.Client(timeout=None) as made:
        yield made


def flag(answer: httpx.Response) -> str:
    found: str = answer.extensions["meshlib"].flag
    return found


def test_nothing_sleeps_and_no_thread_is_left(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    begun, before = time.monotonic(), threading.active_count()
    mesh.apply(
        virtual("retries: {attempts: 3, retryOn: 5xx, backoff: 5s}, timeout: 60s, mirror: {host: audit}")
    )
    mesh.serve("ratings", 503, 503, Response(200, delay="30s"))
    mesh.serve("audit", 500)
    assert client.post(URL, content=b"x").status_code == 200
    assert [call.attempt for call in mesh.calls("ratings")] == [1, 2, 3]
    mesh.assert_called("audit", times=1, mirrored=True, content=b"x", outcome=500)
    assert mesh.clock() > 30
    assert threading.active_count() == before
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("answer", "error", "also"),
    [
        (ConnectionRefusedError("nobody there"), ConnectFailed, httpx.ConnectError),
        (OSError, ConnectFailed, httpx.ConnectError),
        (TimeoutError, ConnectTimedOut, httpx.ConnectTimeout),
        (ConnectionResetError, UpstreamReset, httpx.RemoteProtocolError),
        (Failure.RESET, UpstreamReset, httpx.ReadError),
        (Response(200, delay="5s"), UpstreamTimedOut, httpx.ReadTimeout),
    ],
)
async def test_failures_are_those_of_the_wire(
    mesh: ScriptedMesh, client: meshlib.Client, answer: Any, error: type[Exception], also: type[Exception]
) -> None:
    mesh.apply(NO_RETRIES, destination("{connectionPool: {tcp: {connectTimeout: 3s}}}"))
    mesh.serve("ratings", answer)
    with pytest.raises(error) as raised:
        client.get(URL)
    assert isinstance(raised.value, also)
    first = mesh.clock()
    assert first == {ConnectTimedOut: 3.0, UpstreamTimedOut: 5.0}.get(error, 0.0)
    async with meshlib.AsyncClient(timeout=None) as tasks:
        with pytest.raises(error):
            await tasks.get(URL)
    assert mesh.clock() == 2 * first


def test_the_time_of_a_try_and_of_the_route(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(RETRIES)
    mesh.serve("ratings", Response(200, delay="3s"), Response(200, delay="1s"))
    assert client.get(URL).status_code == 200
    assert [call.outcome for call in mesh.calls()] == [Failure.TRY_TIMED_OUT, 200]
    mesh.serve("ratings", Response(200, delay="3s"))
    with pytest.raises(UpstreamTimedOut) as raised:
        client.get(URL)
    assert raised.value.status == 504
    assert raised.value.flag == "UT"


def test_the_applications_own_time_out_counts(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings", delay="10s")
    mesh.apply(virtual("timeout: 60s"))
    with pytest.raises(httpx.ReadTimeout, match="the client's own limit"):
        client.get(URL, timeout=2)
    assert mesh.clock() == 2.0
    mesh.serve("ratings", TimeoutError)
    with pytest.raises(ConnectTimedOut):
        client.get(URL, timeout=httpx.Timeout(None, connect=1))


def test_a_body_that_breaks_off(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings", content=[b"half", b" of"], breaks=True)
    with client.stream("GET", URL) as answer:
        parts = answer.iter_raw()
        assert [next(parts), next(parts)] == [b"half", b" of"]
        with pytest.raises(UpstreamReset):
            next(parts)


@pytest.mark.parametrize(
    ("method", "status", "body"), [("HEAD", 200, b""), ("GET", 204, b""), ("GET", 200, b"x")]
)
def test_bodies_are_as_http_has_them(
    mesh: ScriptedMesh, client: meshlib.Client, method: str, status: int, body: bytes
) -> None:
    mesh.serve("ratings", status, content=b"x")
    assert client.request(method, URL).content == body


def test_an_ejected_endpoint_comes_back(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    outlier = "{consecutive5xxErrors: 2, baseEjectionTime: 30s, maxEjectionPercent: 100}"
    mesh.apply(NO_RETRIES, destination(f"{{outlierDetection: {outlier}}}"))
    bad, good = mesh.serve("ratings", 500, labels={"pod": "a"}), mesh.serve("ratings", labels={"pod": "b"})
    for _ in range(50):
        client.get(URL)
    assert (len(bad.calls), len(good.calls)) == (2, 48)
    assert repr(bad) == "<Upstream ratings pod=a: 1 endpoints, 2 calls>"
    bad.answer(200)
    mesh.clock.advance("29s")
    client.get(URL)
    assert len(bad.calls) == 2
    mesh.clock.advance("2s")
    for _ in range(20):
        client.get(URL)
    assert len(bad.calls) > 2


async def test_a_breaker_is_caught_in_the_act(mesh: ScriptedMesh) -> None:
    mesh.apply(destination("{connectionPool: {http: {http2MaxRequests: 2}}}"))
    mesh.serve("ratings")
    async with meshlib.AsyncClient() as client:
        with mesh.hold("ratings") as held:
            waiting = [asyncio.create_task(client.get(URL)) for _ in range(2)]
            await held.arrived(2)
            assert repr(held) == "<Hold of ratings: 2 held>"
            assert flag(await client.get(URL)) == "UO"
        assert [one.status_code for one in await asyncio.gather(*waiting)] == [200, 200]
        assert (held.calls, repr(held)) == ((), "<Hold of ratings: released>")
        assert (await client.get(URL)).status_code == 200


def test_threads_are_held_until_they_are_released(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings")
    got: list[int] = []
    held = mesh.hold("ratings", path="/slow")
    thread = threading.Thread(target=lambda: got.append(client.get(URL + "slow").status_code))
    thread.start()
    held.wait()
    assert client.get(URL).status_code == 200
    assert (got, len(held.calls)) == ([], 1)
    held.release()
    thread.join(5)
    assert got == [200]


def test_a_hold_ends_with_the_time_of_the_route(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(NO_RETRIES)
    mesh.serve("ratings")
    raised: list[Exception] = []

    def call() -> None:
        try:
            client.get(URL)
        except httpx.ReadTimeout as error:
            raised.append(error)

    with mesh.hold("ratings") as held:
        thread = threading.Thread(target=call)
        thread.start()
        held.wait()
        mesh.clock.advance(5)
        thread.join(5)
    assert [isinstance(one, UpstreamTimedOut) for one in raised] == [True]


def test_a_hold_that_nothing_ends_is_an_error(
    mesh: ScriptedMesh, client: meshlib.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "PATIENCE", 0.01)
    mesh.serve("ratings")
    with (
        mesh.hold("ratings"),
        pytest.raises(Stuck, match=r"<Call GET ratings:9080/ → nothing yet .* is held"),
    ):
        client.get(URL)
    with pytest.raises(Stuck, match="fewer than 1 calls to ratings are held"):
        mesh.hold("ratings").wait()


POOL = "{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}"


async def test_connections_and_those_who_wait_for_one_are_limited(mesh: ScriptedMesh) -> None:
    mesh.apply(destination(POOL), NO_RETRIES)
    mesh.serve("ratings")
    async with meshlib.AsyncClient() as client:
        with mesh.hold("ratings") as held:
            first = asyncio.create_task(client.get(URL))
            await held.arrived()
            second = asyncio.create_task(client.get(URL))
            await asyncio.sleep(0)
            third = await client.get(URL)
            assert (third.status_code, flag(third)) == (503, "UO")
            assert len(mesh.calls()) == 1
        assert [one.status_code for one in await asyncio.gather(first, second)] == [200, 200]


def test_a_response_that_is_being_read_keeps_its_slot(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(destination("{connectionPool: {http: {http2MaxRequests: 1}}}"))
    mesh.serve("ratings", text="x")
    for _ in range(2):
        with client.stream("GET", URL):
            assert flag(client.get(URL)) == "UO"
        assert client.get(URL).status_code == 200


async def test_who_waits_for_a_connection_has_the_time_of_the_route(mesh: ScriptedMesh) -> None:
    mesh.apply(destination(POOL), NO_RETRIES)
    mesh.serve("ratings")
    async with meshlib.AsyncClient() as client:
        with mesh.hold("ratings") as held:
            first = asyncio.create_task(client.get(URL, timeout=None))
            await held.arrived()
            second = asyncio.create_task(client.get(URL, timeout=httpx.Timeout(None, pool=1)))
            await asyncio.sleep(0)
            mesh.clock.advance(2)
            with pytest.raises(httpx.PoolTimeout):
                await second
            mesh.clock.advance(3)
            with pytest.raises(UpstreamTimedOut):
                await first


async def test_delays_of_tasks_pass_side_by_side(mesh: ScriptedMesh) -> None:
    mesh.serve("ratings", lambda call: Response(text=call.path, delay=float(call.path[1:])))
    ended: list[str] = []
    async with meshlib.AsyncClient(timeout=None) as client:

        async def get(seconds: int) -> None:
            ended.append((await client.get(f"{URL}{seconds}")).text)

        await asyncio.gather(*map(get, (9, 1, 5)))
    assert (ended, mesh.clock()) == (["/1", "/5", "/9"], 9.0)


async def test_uploads_arrive_whole_and_again(mesh: ScriptedMesh) -> None:
    mesh.apply(RETRIES)
    mesh.serve("ratings", 503, 200)

    async def parts() -> Any:
        yield b"a"
        yield b"b"

    async with meshlib.AsyncClient() as client:
        assert (await client.post(URL, content=parts())).status_code == 200
    assert [call.content for call in mesh.calls()] == [b"ab", b"ab"]


def test_an_error_of_the_scripts_function_goes_up(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.serve("ratings", lambda call: {}["nothing"])
    with pytest.raises(KeyError):
        client.get(URL)
    assert mesh.ledger.cluster("outbound|9080||ratings.default.svc.cluster.local").active == 0


def test_chance_is_alike_in_every_run(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(destination("{loadBalancer: {simple: RANDOM}}"))
    mesh.serve("ratings", endpoints=3)
    mesh.dice.load(0.0, 0.5, 0.99)
    for _ in range(3):
        client.get(URL)
    assert [call.endpoint[-6:] for call in mesh.calls()] == ["1:9080", "2:9080", "3:9080"]
    assert mesh.dice.loaded == ()


@pytest.mark.parametrize(
    ("by", "headers"),
    [
        ("{httpHeaderName: x-user}", {"x-user": "jason"}),
        ("{httpCookie: {name: u, ttl: 0s}}", {"cookie": "u=1"}),
    ],
)
def test_a_key_stays_with_its_endpoint(
    mesh: ScriptedMesh, client: meshlib.Client, by: str, headers: dict[str, str]
) -> None:
    mesh.apply(destination(f"{{loadBalancer: {{consistentHash: {by}}}}}"))
    mesh.serve("ratings", endpoints=5)
    for _ in range(10):
        client.get(URL, headers=headers)
    assert len({call.endpoint for call in mesh.calls()}) == 1


@pytest.mark.parametrize("tasks", [False, True])
async def test_hedged_tries_take_the_time_that_they_would(
    mesh: ScriptedMesh, client: meshlib.Client, tasks: bool
) -> None:
    mesh.apply(virtual("retries: {attempts: 2, retryOn: 5xx, perTryTimeout: 1s, backoff: 1ms}, timeout: 60s"))
    mesh.serve("ratings", Response(200, content=b"first", delay="3s"), Response(503, delay="1s"), 503)
    mesh.serve(
        "late", Response(200, content=b"first", delay="9s"), Response(200, content=b"second", delay="1s")
    )
    mesh.apply(virtual("timeout: 60s").replace("ratings", "late").replace("timeout", RETRY_ONCE))
    hedges = {"x-envoy-hedge-on-per-try-timeout": "true"}
    before = threading.active_count()
    async with meshlib.AsyncClient(timeout=None) as other:
        for url, content, attempts, seconds in (
            (URL, b"first", 3, 3),
            ("http://late:9080/", b"second", 2, 2),
        ):
            begun = mesh.clock()
            answer = await other.get(url, headers=hedges) if tasks else client.get(url, headers=hedges)
            assert (answer.content, answer.extensions["meshlib"].attempts) == (content, attempts)
            assert seconds <= mesh.clock() - begun < seconds + 0.1
    assert threading.active_count() == before


def test_a_response_that_is_dropped_wakes_who_waits_for_its_connection(
    mesh: ScriptedMesh, client: meshlib.Client
) -> None:
    mesh.apply(destination("{connectionPool: {tcp: {maxConnections: 1}}}"))
    mesh.serve("ratings", text="0123456789")
    dropped = [client.send(client.build_request("GET", URL), stream=True)]
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(client.get, URL)
        while not mesh.clock._wakes:
            time.sleep(0.001)
        dropped.clear()
        gc.collect()
        assert waits.result(10).status_code == 200


def test_threads_wait_for_their_upstreams_side_by_side(mesh: ScriptedMesh, client: meshlib.Client) -> None:
    mesh.apply(virtual("timeout: 2s"))
    mesh.serve("ratings", delay="1s")
    mesh.serve("slow", delay="10s")
    begin = threading.Barrier(2)

    def get(url: str) -> int:
        with mesh.clock.calling():
            begin.wait()
            return client.get(url).status_code

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(get, (URL, "http://slow:9080/"))) == [200, 200]
    assert mesh.clock() == 10
