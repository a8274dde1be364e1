"""Network namespaces that are made for a program, and what is left of them.

    the program's namespace  eth0 (ADDRESS/32) ◄── veth ──► ml<hex> (169.254.1.1)  the node's namespace

Rules:

- The name says the address: whoever makes the namespace of a name first has the address.
- One in which no process lives is left over: a watcher (`watcher.py`) lives in each that is of use.
- One that is being made is not left over either, though nobody lives in it yet: who makes one, and who looks
  for what is left, wait for each other at a lock.
- Its address leads to it from the node. From other machines a route has to lead to the node, which has to
  forward (`net.ipv4.ip_forward`); neither is changed here.
"""

import contextlib
import fcntl
import ipaddress
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshlib.agent.command import CommandFailed, executable, run
from meshlib.errors import ConfigError

FOLDER = Path("/run/netns")
LOCK = Path("/run/meshlib-netns.lock")
PATIENCE = 5.0
"""Seconds that who looks for what is left waits for those who make one."""
PREFIX = "meshlib-"
GATEWAY = "169.254.1.1"
SUBNET = ipaddress.IPv4Network("10.215.0.0/24")
"""Where addresses come from, if nothing else is said."""
_KNOWN = "File exists"


@dataclass(frozen=True, slots=True)
class Namespace:
    """One of ours."""

    address: ipaddress.IPv4Address

    @property
    def name(self) -> str:
        """As `ip netns` lists it."""
        return f"{PREFIX}{self.address}"

    @property
    def path(self) -> str:
        """By which others enter it."""
        return str(FOLDER / self.name)

    @property
    def taken(self) -> bool:
        """Whether there is one of that name."""
        return Path(self.path).exists()

    @property
    def link(self) -> str:
        """The node's end of its cable."""
        return f"ml{int(self.address):08x}"

    @classmethod
    def of(cls, name: str) -> "Namespace | None":
        """By its name; None: it is not one of ours."""
        try:
            return cls(ipaddress.IPv4Address(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else None
        except ValueError:
            return None


async def obstacle() -> str:
    """Why none can be made and captured here; empty: nothing stands in the way."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    try:
        for name in ("ip", "nsenter"):
            executable(name)
        await run("unshare", "--net", executable("nft"), "list", "ruleset")
    except (ConfigError, CommandFailed) as error:
        return str(error)
    return ""


async def create(subnet: ipaddress.IPv4Network = SUBNET) -> Namespace:
    """A new one, with the lowest address that is free. CommandFailed; ConfigError: none is free."""
    for address in subnet.hosts():
        found = Namespace(address)
        if found.taken:
            continue
        try:
            await run("ip", "netns", "add", found.name)
        except CommandFailed as error:
            if _KNOWN in str(error):
                continue
            raise
        try:
            await _connect(found)
        except BaseException:
            await remove(found)
            raise
        return found
    raise ConfigError(f"subnet: all addresses of {subnet} are taken; `meshlib node clean` frees what is left")


async def _connect(one: Namespace) -> None:
    await run(
        "ip",
        "-batch",
        "-",
        given=f"""\
link add {one.link} type veth peer name eth0 netns {one.name}
addr add {GATEWAY}/32 dev {one.link} scope host
link set {one.link} up
route add {one.address}/32 dev {one.link}
""",
    )
    await run(
        "ip",
        "-n",
        one.name,
        "-batch",
        "-",
        given=f"""\
link set lo up
addr add {one.address}/32 dev eth0
link set eth0 up
route add {GATEWAY} dev eth0 scope link
route add default via {GATEWAY}
""",
    )


async def remove(one: Namespace) -> None:
    """Its cable and its name; the namespace itself goes with the last who is in it."""
    with contextlib.suppress(CommandFailed):
        await run("ip", "link", "del", one.link)
    with contextlib.suppress(CommandFailed):
        await run("ip", "netns", "del", one.name)


def ours() -> list[Namespace]:
    """All of ours that there are."""
    names = sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else []
    return [one for name in names if (one := Namespace.of(name)) is not None]


def is_ours(path: str) -> bool:
    """Whether one of ours is, or was, at a path."""
    found = Namespace.of(Path(path).name)
    return found is not None and found.path == path


@contextlib.contextmanager
def making() -> Iterator[None]:
    """For the time from before one is made until somebody lives in it. OSError: not root."""
    lock = _opened()
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def left_over() -> list[Namespace]:
    """Those in which nobody lives; none, if one is being made for longer than is waited."""
    if not ours():
        return []
    lock = _opened()
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    return []
                time.sleep(0.02)
        inhabited = set(_inhabited())
        return [one for one in ours() if number(one.path) not in inhabited]
    finally:
        os.close(lock)


def _opened() -> int:
    return os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _inhabited() -> Iterator[tuple[int, int] | None]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            yield number(process / "ns" / "net")


def number(path: str | Path) -> tuple[int, int] | None:
    """Of the namespace that is there now, by whatever path; None: none, or it is not ours to know."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


def same(path: str, other: str) -> bool:
    """Whether they are two paths of one namespace."""
    return path == other or (number(path) is not None and number(path) == number(other))


async def address_of(netns: str) -> str:
    """The first IPv4 address in a namespace that others could reach. CommandFailed: there is none."""
    said = await run("nsenter", f"--net={netns}", "ip", "-o", "-4", "addr", "show", "scope", "global")
    for line in said.splitlines():
        words = line.split()
        if "inet" in words:
            return words[words.index("inet") + 1].partition("/")[0]
    raise CommandFailed(f"there is no IPv4 address in {netns}; say `address`")
