"""The cases of interoperability: a service of its own each, calls, and in a few words what came of them.

Which words are right for whom, docs/reference/grpc-interop.md says; see `interop_page`.
"""

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import wait_until
from support.grpc_server import PATH, Seen, grpc_server
from support.interop_clients import Client, Told
from support.ports import free_port

DOCUMENTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  ports: [{{number: {port}, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
{endpoints}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}
  trafficPolicy: {{{policy}}}
  subsets: [{{name: a, labels: {{version: a}}}}, {{name: b, labels: {{version: b}}}}]
"""
RULES = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  http: {http}
"""
ROUND_ROBIN = "loadBalancer: {simple: ROUND_ROBIN}"
EJECTION = "outlierDetection: {consecutive5xxErrors: 3, interval: 1s, maxEjectionPercent: 100}"


@dataclass
class World:
    """Who answers, and the folder of rules."""

    folder: Path
    port: int
    """Of every service."""
    a: Seen
    b: Seen
    near: int = field(default_factory=free_port)
    """Of an endpoint that is there only in some cases."""
    keys: list[str] = field(default_factory=list)
    """Where the first client's keys went."""

    @property
    def ports(self) -> dict[str, int]:
        return {"a": self.a.port, "b": self.b.port, "near": self.near}

    def write(self, case: "Case", endpoints: str = "") -> None:
        """Puts a case in force; `endpoints` in place of its own."""
        new = self.folder.with_suffix(".new")
        new.write_text(case.documents(self, endpoints))
        new.rename(self.folder / f"{case.host}.yaml")


@dataclass
class Play:
    """One case with one client."""

    case: "Case"
    world: World
    client: Client

    def ask(self, method: str = "who", message: str = "", **asked: Any) -> Told:
        host = f"{self.case.host}:{self.world.port}"
        return self.client(host, method=PATH + method, message=message, **{"deadline": 60, **asked})

    def until(self, wanted: set[str]) -> None:
        """Waits until these answer and no others."""
        wait_until(lambda: set(self.ask(calls=6).answers) == wanted, 60, f"{wanted} to answer")

    @contextlib.contextmanager
    def failing(self, method: str, calls: int) -> Iterator[None]:
        """So many calls of that method are answered by UNAVAILABLE, by `a`."""
        self.world.a.failing[method] = calls
        try:
            yield
        finally:
            self.world.a.failing.pop(method)


@dataclass(frozen=True)
class Case:
    """One row of the page."""

    name: str
    come: Callable[[Play], str]
    http: str = ""
    """Of a VirtualService; without it there is none. `<all>` is its host, `<a>` and `<b>` its subsets."""
    policy: str = ROUND_ROBIN
    endpoints: str = "a"
    """Who answers: names, each with what stands in its ServiceEntry besides."""

    @property
    def host(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60]

    def documents(self, world: World, endpoints: str = "") -> str:
        listed = ""
        for one in (endpoints or self.endpoints).split("; "):
            name, _, more = one.partition(" ")
            said = f"labels: {{version: {name}}}" + (f", {more}" if more else "")
            listed += f"  - {{address: 127.0.0.1, ports: {{grpc: {world.ports[name]}}}, {said}}}\n"
        text = DOCUMENTS.format(name=self.host, port=world.port, endpoints=listed, policy=self.policy)
        if self.http:
            http = self.http
            for word, subset in (("<all>", ""), ("<a>", ", subset: a"), ("<b>", ", subset: b")):
                http = http.replace(word, f"{{host: {self.host}{subset}}}")
            text += RULES.format(name=self.host, http=http)
        return text


def ping(play: Play) -> str:
    return play.ask(calls=3).words


def shares(play: Play) -> str:
    """In which proportion two answer."""
    found = play.ask(calls=200)
    assert not found.errors, found
    share = found.answers["a"] / 200
    for words, least, most in (("1 : 1", 0.36, 0.64), ("3 : 1", 0.65, 0.86), ("all to one", 1, 1)):
        if least <= share <= most:
            return words
    return f"{found.answers}"


def turns(play: Play) -> str:
    """Whether two take turns."""
    play.until({"a", "b"})
    found = play.ask(calls=20).answers
    return "in turn" if found == {"a": 10, "b": 10} else f"{dict(found)}"


def by_metadata(play: Play) -> str:
    wanted = {"one": "b", "p-two": "b", "333": "b", "p": "a", "x1": "a", "": "a"}
    found = {value: set(play.ask(calls=2, metadata={"x-case": value}).answers) for value in wanted}
    return "as said" if found == {value: {who} for value, who in wanted.items()} else f"{found}"


def by_path(play: Play) -> str:
    """A path leads to `b`, any other to `a`."""
    for server in (play.world.a, play.world.b):
        server.calls.clear()
    for method in ("who", "echo"):
        assert play.ask(method).words == "answered"
    found = play.world.a.calls, play.world.b.calls
    return "as said" if found == ({"echo": 1}, {"who": 1}) else f"{found}"


def changed_endpoints(play: Play) -> str:
    return _followed(play, "a", "b")


def _followed(play: Play, first: str, then: str) -> str:
    play.world.write(play.case, first)
    play.until({first})
    play.world.write(play.case, then)
    failed: Counter[str] = Counter()

    def there() -> bool:
        found = play.ask(calls=5)
        failed.update(found.errors)
        return set(found.answers) == {then}

    wait_until(there, 60, f"{then} to answer")
    return f"followed, {sum(failed.values()) or 'none'} failed"


def gone(play: Play) -> str:
    """The service is taken out of the configuration while it is called."""
    play.world.write(play.case)
    play.until({"a"})
    (play.world.folder / f"{play.case.host}.yaml").unlink()
    until = time.monotonic() + 2
    while not (found := play.ask(deadline=2)).errors and time.monotonic() < until:
        time.sleep(0.02)
    return found.words


def unknown(play: Play) -> str:
    host = f"nobody-{play.case.host}:{play.world.port}"
    return timed(play.client(host, method=PATH + "who", deadline=1.5))


def over(play: Play) -> str:
    """The near endpoint answers, then is gone."""
    with grpc_server("near", port=play.world.near):
        play.until({"near"})
    found = play.ask(calls=20)
    assert found.answers["b"] == 20 - sum(found.errors.values()), found
    return f"elsewhere, {sum(found.errors.values()) or 'none'} failed"


def locality(play: Play) -> str:
    found = play.ask(calls=20)
    return "all to the own region" if found.answers == {"a": 20} else f"{found}"


def broken(play: Play, apart: float = 0.02) -> str:
    assert play.ask().words == "answered"
    found = play.ask("slow", "0.5", calls=6, apart=apart)
    assert found.answers["late"] + sum(found.errors.values()) == 6
    return f"{found.answers['late']} of 6, {found.words.removeprefix('answered, ')}"


def at_once(play: Play) -> str:
    return broken(play, 0.0)


def timed(found: Told) -> str:
    """What came of calls, and after how long: `{words} after {seconds} s`."""
    return f"{found.words} after {max(found.seconds):.2f} s"


def late(play: Play) -> str:
    assert play.ask().words == "answered"
    return timed(play.ask("slow", "10"))


def own_deadline(play: Play) -> str:
    assert play.ask().words == "answered"
    return timed(play.ask("slow", "10", deadline=0.3))


def tries(play: Play) -> str:
    """How often a call is made that always fails."""
    play.world.a.calls.clear()
    with play.failing("echo", 1000):
        found = play.ask("echo")
    return f"{tried(play, 'echo')}, {found.words}"


def per_try(play: Play) -> str:
    play.world.a.calls.clear()
    found = play.ask("slow", "10", deadline=1.5)
    return f"{tried(play, 'slow')}, {timed(found)}"


def tried(play: Play, method: str) -> str:
    count = play.world.a.calls[method]
    return f"{count} {'try' if count == 1 else 'tries'}"


def delayed(play: Play) -> str:
    return timed(play.ask())


def some(play: Play) -> str:
    found = play.ask(calls=100)
    return "half" if 30 <= sum(found.errors.values()) <= 70 else f"{found.errors}"


def affinity(play: Play) -> str:
    """Whether each key's calls go to one endpoint, which is that of the client before, too."""
    keys = [f"user-{number}" for number in range(16)]
    found = ["".join(play.ask(calls=2, metadata={"x-user": key}).answers) for key in keys]
    play.world.keys = play.world.keys or found
    assert set(found) <= {"a", "b"}, found
    return "one key, one endpoint" + (", the same for all" if found == play.world.keys else "")


def ejected(play: Play) -> str:
    """After how many failures, in a row, an endpoint is left alone."""
    with play.failing("echo", 100_000):
        failed, until = 0, time.monotonic() + 30
        while found := play.ask("echo", calls=10).errors:
            failed += sum(found.values())
            assert time.monotonic() < until
    return f"after {failed}" if failed <= 5 else "after the interval"


def seen(name: str) -> Callable[[Play], str]:
    """Whether the server saw that header."""

    def come(play: Play) -> str:
        found = play.ask("who")
        assert found.words == "answered", found
        return "yes" if any(key == name for key, _ in play.world.a.metadata) else "no"

    return come


def ping_of(method: str) -> Callable[[Play], str]:
    return lambda play: play.ask(method).words


def mirrored(play: Play) -> str:
    play.world.b.calls.clear()
    assert play.ask("echo").words == "answered"
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if play.world.b.calls["echo"]:
            return "yes"
        time.sleep(0.01)
    return "no"


def retries(attempts: str, on: str = "unavailable") -> str:
    """Of a VirtualService."""
    return f"[{{retries: {{attempts: {attempts}, retryOn: {on}}}, route: [{{destination: <all>}}]}}]"


def fault(kind: str, how: str, percent: int = 100) -> str:
    """Of a VirtualService."""
    said = f"{{{kind}: {{{how}, percentage: {{value: {percent}}}}}}}"
    return f"[{{fault: {said}, route: [{{destination: <all>}}]}}]"


CASES = [
    Case("ping", ping),
    Case("an unknown host", unknown),
    Case("ROUND_ROBIN", turns, endpoints="a; b"),
    Case(
        "weights of destinations, 75 and 25",
        shares,
        "[{route: [{destination: <a>, weight: 75}, {destination: <b>, weight: 25}]}]",
        endpoints="a; b",
    ),
    Case("weights of endpoints, 3 and 1", shares, endpoints="a weight: 3; b weight: 1"),
    Case(
        "match: uri",
        by_path,
        """
  - {match: [{uri: {exact: /test.Service/who}}], route: [{destination: <b>}]}
  - route: [{destination: <a>}]""",
        endpoints="a; b",
    ),
    Case(
        "match: headers, by exact, prefix, regex",
        by_metadata,
        """
  - match:
    - headers: {x-case: {exact: one}}
    - headers: {x-case: {prefix: p-}}
    - headers: {x-case: {regex: "[0-9]+"}}
    route: [{destination: <b>}]
  - route: [{destination: <a>}]""",
        endpoints="a; b",
    ),
    Case("endpoints change", changed_endpoints),
    Case("the service is taken away", gone),
    Case(
        "two regions",
        locality,
        policy=EJECTION,
        endpoints="a locality: r1; b locality: r2",
    ),
    Case(
        "two regions, nobody listens in the own",
        over,
        policy=EJECTION,
        endpoints="near locality: r1; b locality: r2",
    ),
    Case("http2MaxRequests: 2", broken, policy="connectionPool: {http: {http2MaxRequests: 2}}"),
    Case(
        "http2MaxRequests: 2, calls begun at once",
        at_once,
        policy="connectionPool: {http: {http2MaxRequests: 2}}",
    ),
    Case("timeout: 0.3s", late, "[{timeout: 0.3s, route: [{destination: <all>}]}]"),
    Case("the call's own deadline, 0.3 s", own_deadline),
    Case(
        "perTryTimeout: 0.3s, attempts: 1",
        per_try,
        retries("1, perTryTimeout: 0.3s", "'5xx,deadline-exceeded,cancelled'"),
    ),
    Case("attempts: 2", tries, retries("2")),
    Case("attempts: 2, backoff: 1ms", tries, retries("2, backoff: 1ms")),
    Case("attempts: 6", tries, retries("6")),
    Case("no retries said", tries),
    Case("fault: a delay of 0.3s", delayed, fault("delay", "fixedDelay: 0.3s")),
    Case("fault: abort, NOT_FOUND", ping, fault("abort", "grpcStatus: NOT_FOUND")),
    Case("fault: abort, 503", ping, fault("abort", "httpStatus: 503")),
    Case("fault: abort of 50 %", some, fault("abort", "grpcStatus: ABORTED", 50)),
    Case(
        "consistentHash: a header",
        affinity,
        policy="loadBalancer: {consistentHash: {httpHeaderName: x-user}}",
        endpoints="a; b",
    ),
    Case(
        "consecutive5xxErrors: 3",
        ejected,
        "[{retries: {attempts: 0}, route: [{destination: <all>}]}]",
        policy=f"{ROUND_ROBIN}, {EJECTION}",
        endpoints="a; b",
    ),
    Case(
        "headers: a request header",
        seen("x-added"),
        "[{headers: {request: {set: {x-added: here}}}, route: [{destination: <all>}]}]",
    ),
    Case(
        "rewrite: uri",
        ping_of("nowhere"),
        """
  - match: [{uri: {exact: /test.Service/nowhere}}]
    rewrite: {uri: /test.Service/who}
    route: [{destination: <all>}]""",
    ),
    Case("mirror", mirrored, "[{mirror: <b>, route: [{destination: <a>}]}]", endpoints="a; b"),
    Case("directResponse: 403", ping, "[{directResponse: {status: 403}}]"),
]
