"""What is done in the cases of interoperability, and in a few words what came of it.

Which words are right for whom, docs/reference/grpc-interop.md says; see `interop_page`.
"""

import time
from collections import Counter
from collections.abc import Callable

from support.commands import wait_until
from support.grpc_server import PATH, grpc_server
from support.interop_clients import Told
from support.interop_play import Play


def ping(play: Play) -> str:
    return play.ask(calls=3).words


def shares(play: Play) -> str:
    """In which proportion two answer. A fair 3 : 1 is outside of the bounds once in 10^6 runs."""
    found = play.ask(calls=200)
    assert not found.errors, found
    share = found.answers["a"] / 200
    for words, least, most in (("1 : 1", 0.45, 0.55), ("3 : 1", 0.6, 0.89)):
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
    failed = sum(found.errors.values())
    assert failed <= 3, found
    return "elsewhere, after a failure" if failed else "elsewhere, none failed"


def locality(play: Play) -> str:
    found = play.ask(calls=20)
    return "all to the own region" if found.answers == {"a": 20} else f"{found}"


def broken(play: Play, apart: float = 0.02) -> str:
    assert play.ask().words == "answered"
    found = play.ask("slow", "0.8", calls=6, apart=apart)
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
    found = play.ask("slow", "10", deadline=2)
    return f"{tried(play, 'slow')}, {timed(found)}"


def tried(play: Play, method: str) -> str:
    count = play.world.a.calls[method]
    return f"{count} {'try' if count == 1 else 'tries'}"


def delayed(play: Play) -> str:
    return timed(play.ask())


def some(play: Play) -> str:
    found = play.ask(calls=100)
    return "half" if 25 <= sum(found.errors.values()) <= 75 else f"{found.errors}"


def affinity(play: Play) -> str:
    """Whether each key's calls go to one endpoint, which is that of the client before, too."""
    keys = [f"user-{number}" for number in range(16)]
    found = ["".join(play.ask(calls=2, metadata={"x-user": key}).answers) for key in keys]
    play.world.keys = play.world.keys or found
    assert set(found) <= {"a", "b"}, found
    return "one key, one endpoint" + (", the same for all" if found == play.world.keys else "")


def ejected(play: Play) -> str:
    """When an endpoint of which each call fails is left alone; Envoy tells its threads a moment later."""
    with play.failing("echo", 100_000):
        failed, until = 0, time.monotonic() + 30
        while found := play.ask("echo", calls=10).errors:
            failed += sum(found.values())
            assert time.monotonic() < until
    return "at once" if failed <= 4 else "after the interval"


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
    until = time.monotonic() + 4  # a busy machine takes a second to connect
    while time.monotonic() < until:
        if play.world.b.calls["echo"]:
            return "yes"
        time.sleep(0.01)
    return "no"
