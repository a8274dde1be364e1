"""What is captured of a real namespace, and what stays of it. Needs root."""

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.commands import wait_until

from meshlib.agent import netns
from meshlib.agent.capture import Captures
from meshlib.agent.netns import Namespace
from meshlib.agent.watcher import Watcher
from meshlib.errors import ConfigError

SUBNET = ipaddress.IPv4Network((0x0AD80000 + (os.getpid() % 8192) * 8, 29))
"""Of this process: six addresses."""
CONNECT = """
import socket, sys
try:
    made = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    print(made.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""
SAY = """
import asyncio, sys
async def main():
    async def say(reader, writer, text):
        writer.write(text); await writer.drain(); writer.close()
    for port, where in ((15001, '127.0.0.1'), (15006, '0.0.0.0'), (15008, '0.0.0.0'), (80, '0.0.0.0')):
        text = str(port).encode()
        await asyncio.start_server(lambda r, w, text=text: say(r, w, text), where, port)
    class Dns(asyncio.DatagramProtocol):
        def connection_made(self, made): self.made = made
        def datagram_received(self, data, peer): self.made.sendto(b'dns ' + data, peer)
    await asyncio.get_running_loop().create_datagram_endpoint(Dns, ('127.0.0.1', 15053))
    print('ready', flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
ASK = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); made.settimeout(5)
made.connect((sys.argv[1], 53))
try:
    made.send(b'q'); print(made.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """In which somebody lives, so that no agent of another test takes it for left over."""
    with netns.making():
        one = await netns.create(SUBNET)
        lives = subprocess.Popen(["nsenter", f"--net={one.path}", "sleep", "1000"])
        wait_until(lambda: netns.number(f"/proc/{lives.pid}/ns/net") == netns.number(one.path), 10, "nsenter")
    try:
        yield one
    finally:
        lives.kill()
        lives.wait()
        await netns.remove(one)


async def captured(captures: Captures, one: Namespace) -> None:
    """And not held."""
    (await captures.capture(one.path)).close()


def inside(one: Namespace, code: str, *arguments: str) -> str:
    command = ["nsenter", f"--net={one.path}", sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def outside(one: Namespace, port: int) -> str:
    try:
        with socket.create_connection((str(one.address), port), 5) as made:
            return made.recv(100).decode()
    except OSError as error:
        return type(error).__name__


@contextlib.contextmanager
def proxy(one: Namespace) -> Iterator[None]:
    """Stands in for the Envoy and the application."""
    command = ["nsenter", f"--net={one.path}", sys.executable, "-c", SAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


async def test_all_tcp_and_dns_of_a_namespace_leads_to_the_proxy_or_nowhere(tmp_path: Path) -> None:
    async with namespace() as one:
        own = str(one.address)
        captures = Captures(tmp_path / "captured")
        await captured(captures, one)
        # Nobody listens yet: nothing goes out, nothing comes in.
        assert inside(one, CONNECT, "198.51.100.1", "80") == "ConnectionRefusedError"
        assert outside(one, 80) == "ConnectionRefusedError"
        with proxy(one):
            assert inside(one, CONNECT, "198.51.100.1", "80") == "15001"
            assert inside(one, CONNECT, "198.51.100.1", "53") == "15001"
            assert inside(one, ASK, "198.51.100.53") == "dns q"
            assert inside(one, ASK, "127.0.0.53") == "dns q"
            assert [outside(one, port) for port in (80, 8080, 15008)] == ["15006", "15006", "15008"]
            # Its own loopback is its own affair.
            assert [inside(one, CONNECT, host, "80") for host in ("127.0.0.1", own)] == ["80", "80"]
            # Nobody gets to the captured ports by their numbers.
            assert [outside(one, port) for port in (15001, 15006)] == ["ConnectionRefusedError"] * 2
            for host in ("127.0.0.1", own):
                for port in ("15001", "15006"):
                    assert inside(one, CONNECT, host, port) == "ConnectionRefusedError"
        assert inside(one, CONNECT, "198.51.100.1", "80") == "ConnectionRefusedError"
        await captures.release(one.path)
        assert "meshlib" not in tables(one)


NEIGHBOUR = """
ip link set lo down; ip link set {link} up; ip addr add {gateway}/32 dev {link}
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
for address in {addresses}; do
  ip route add $address/32 dev {link} src {gateway}
  ip neigh add $address lladdr {hardware} dev {link}
done
"""


async def test_what_listens_at_the_loopback_alone_is_not_reached_by_a_neighbour(tmp_path: Path) -> None:
    async with namespace() as one, namespace() as other:
        await captured(Captures(tmp_path / "captured"), one)
        command = ["ip", "-n", one.name, "-j", "link", "show", "eth0"]
        (eth0,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        # Its cable leads to another machine, which sends it what is for a loopback.
        subprocess.run(["ip", "link", "set", one.link, "netns", other.name], check=True)
        script = NEIGHBOUR.format(
            link=one.link,
            gateway=netns.GATEWAY,
            hardware=eth0["address"],
            addresses=f"{one.address} 127.0.0.1 127.9.9.9 198.51.100.7",
        )
        # Such as kube-proxy has it.
        willing = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"
        subprocess.run(["nsenter", f"--net={one.path}", "sh", "-ec", willing], check=True)
        subprocess.run(["nsenter", f"--net={other.path}", "sh", "-ec", script], check=True)
        with proxy(one):
            quickly = CONNECT.replace(", 5)", ", 0.5)")
            assert inside(other, quickly, str(one.address), "80") == "15006"
            # Nor does it call others as the workload, which leads it to where it was going.
            for elsewhere in ("127.0.0.1", "127.9.9.9", "198.51.100.7"):
                assert inside(other, quickly, elsewhere, "80") == "TimeoutError"


async def test_a_namespace_that_is_another_or_lost_its_rules_is_seen(tmp_path: Path) -> None:
    captures, links = Captures(tmp_path / "captured"), tmp_path / "captured.netns"
    async with namespace() as one:
        held = await captures.capture(one.path)
        assert await held.lost() == ""
        own = ["ip", "netns", "exec", one.name, "nft"]
        subprocess.run([*own, "add", "table", "ip", "theirs"], check=True)
        assert await held.lost() == "", "what others put there is theirs"
        for change in ("delete table ip meshlib", "flush ruleset", "flush chain ip6 meshlib input"):
            subprocess.run([*own, *change.split()], check=True)
            assert await held.lost() == f"somebody changed its rules in {one.path}"
            again = await captures.capture(one.path)
            held.close()
            held, link = again, again.link
            assert await held.lost() == ""
            assert netns.same(link, one.path)
        await netns.remove(one)
        assert await held.lost() == f"the network namespace {one.path} is gone"
        await netns.create(ipaddress.IPv4Network(f"{one.address}/32"))
        assert await held.lost() == f"another network namespace is at {one.path}"
        assert "meshlib" not in tables(one)
        again = await captures.capture(one.path)
        assert (await again.lost(), again.link == link) == ("", False)
        assert netns.number(link) not in (None, netns.number(one.path))
        held.close()
        held.close()
        assert [str(path) for path in links.iterdir()] == [again.link]
        again.close()
        assert not links.exists()
        (links / "1").parent.mkdir()
        (links / "1").symlink_to("/proc/0/fd/1")
        third = await captures.capture(one.path)
        assert captures.sweep() == [links / "1"]
        assert netns.same(third.link, one.path)
        third.close()


async def test_what_is_held_can_be_unmounted(tmp_path: Path) -> None:
    async with namespace() as one:
        held = await Captures(tmp_path / "captured").capture(one.path)
        subprocess.run(["umount", one.path], check=True)
        assert await held.lost() == f"the network namespace {one.path} is gone"
        held.close()


async def test_rules_of_others_stay_and_ours_are_there_once(tmp_path: Path) -> None:
    async with namespace() as one:
        subprocess.run(["ip", "netns", "exec", one.name, "nft", "add", "table", "ip", "theirs"], check=True)
        captures = Captures(tmp_path / "captured")
        for _ in range(2):
            await captured(captures, one)
        assert set(tables(one).splitlines()) == {
            "table ip meshlib",
            "table ip theirs",
            "table ip6 meshlib",
        }
        for _ in range(2):
            await captures.release(one.path)
        assert tables(one).splitlines() == ["table ip theirs"]


async def test_ipv6_is_no_way_around(tmp_path: Path) -> None:
    async with namespace() as one:
        own = ["ip", "netns", "exec", one.name]
        subprocess.run(["ip", "addr", "add", "fe80::1/64", "dev", one.link, "nodad"], check=True)
        subprocess.run([*own, "ip", "addr", "add", "fe80::2/64", "dev", "eth0", "nodad"], check=True)
        with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
            port = str(server.getsockname()[1])
            assert inside(one, CONNECT.replace("made.recv(100).decode()", "1"), "fe80::1%eth0", port) == "1"
            await captured(Captures(tmp_path / "captured"), one)
            assert inside(one, CONNECT, "fe80::1%eth0", port) == "ConnectionRefusedError"
        assert inside(one, CONNECT, "::1", "80") == "ConnectionRefusedError"  # nobody listens
        with pytest.raises(TimeoutError):
            socket.create_connection((f"fe80::2%{one.link}", 80), 0.2)


async def test_addresses_are_given_once_and_come_back() -> None:
    async with contextlib.AsyncExitStack() as stack:
        made = await asyncio.gather(*(stack.enter_async_context(namespace()) for _ in range(6)))
        assert {one.address for one in made} == set(SUBNET.hosts())
        with pytest.raises(ConfigError, match=f"all addresses of {SUBNET} are taken"):
            await netns.create(SUBNET)
    assert not {one for one in netns.ours() if one.address in SUBNET}
    async with namespace() as one:
        assert one.address == SUBNET[1]


async def test_what_is_being_made_is_not_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "PATIENCE", 0.05)
    with netns.making():
        one = await netns.create(SUBNET)
        assert netns.left_over() == []
    try:
        wait_until(lambda: one in netns.left_over() or one not in netns.ours(), 30, "others that make some")
    finally:
        await netns.remove(one)


async def test_the_first_address_of_a_namespace_is_found() -> None:
    async with namespace() as one:
        assert await netns.address_of(one.path) == str(one.address)


def child(one: Namespace, code: str) -> subprocess.Popen[str]:
    command = ["nsenter", f"--net={one.path}", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


FORKS = "import os,time,signal; os.fork() or os.setsid(); {}; os.write(1, b'up\\n'); time.sleep(1000)"


@pytest.mark.parametrize("stubborn", ["0", "signal.signal(15, signal.SIG_IGN)"])
async def test_a_watcher_ends_all_who_live_there_when_its_pipe_closes(stubborn: str) -> None:
    with netns.making():
        one = await netns.create(SUBNET)
        watcher = Watcher(one, 30 if stubborn == "0" else 0.1)
        watcher.settle()
    with child(one, FORKS.format(stubborn)) as program:
        watcher.watch(program.pid)
        assert one not in netns.left_over()
        watcher.end(30)
        assert program.wait(10) == (-signal.SIGTERM if stubborn == "0" else -signal.SIGKILL)
        assert program.stdout is not None
        assert program.stdout.read() in ("", "up\n")  # the other process has closed it, too
    assert one not in netns.ours()
    assert one.link not in socket_names()


async def test_a_watcher_outlives_whoever_is_killed() -> None:
    with contextlib.ExitStack() as stack:
        with netns.making():
            one = await netns.create(SUBNET)
            code = f"""
import ipaddress, signal, subprocess, sys
from meshlib.agent.netns import Namespace
from meshlib.agent.watcher import Watcher
one = Namespace(ipaddress.IPv4Address("{one.address}"))
watcher = Watcher(one)
watcher.settle()
program = subprocess.Popen(["nsenter", f"--net={{one.path}}", "sleep", "1000"], start_new_session=True)
watcher.watch(program.pid)
print(program.pid, flush=True)
signal.pause()
"""
            command = [sys.executable, "-c", code]
            keeper = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert keeper.stdout is not None
            program = int(keeper.stdout.readline())
        keeper.kill()
        wait_until(lambda: one not in netns.ours(), 30, "the end of the namespace")
        wait_until(lambda: not Path(f"/proc/{program}").exists(), 30, "the end of the program")


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "1000"])
    os._exit(0)
os.wait()
"""
"""Starts what hides as a daemon does."""


@pytest.mark.parametrize("stays", [True, False])
def test_without_a_namespace_all_that_a_program_started_ends_with_whoever_is_killed(stays: bool) -> None:
    marked = f"MARK={os.getpid()}-{stays}"
    program = ["env", marked, sys.executable, "-c", f"{DAEMON}print(1, flush=True); time.sleep(1000)"]
    code = f"""
import subprocess, signal
from meshlib.agent.watcher import Watcher
watcher = Watcher(None)
words, needed = watcher.command({program!r})
subprocess.Popen(words, pass_fds=needed, start_new_session=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        try:
            assert keeper.stdout.readline() == "1\n"
            wait_until(lambda: len(marks(marked, b"sleep\0")) == 1, 30, "the daemon")
            (program,) = marks(marked, b"time.sleep")
            if stays:
                keeper.kill()
            else:
                os.kill(program, signal.SIGKILL)
            wait_until(lambda: not marks(marked), 30, "the end of all")
        finally:
            keeper.kill()


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "trap 'exit 3' TERM; kill -TERM $PPID; while :; do sleep 0.01; done"], 3),
        ([sys.executable, "-c", f"{DAEMON}sys.exit(5)"], 5),
        (["/nowhere/nothing"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_without_a_namespace_a_program_ends_as_it_ends(program: list[str], status: int) -> None:
    watcher = Watcher(None, 0.2)
    words, needed = watcher.command(program)
    assert subprocess.run(words, pass_fds=needed, check=False, timeout=30).returncode == status
    watcher.end()


async def test_where_there_is_no_better_way_a_watcher_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "starts", False)
    watcher = Watcher(None, 0.1)
    with subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], start_new_session=True) as program:
        watcher.watch(program.pid)
        watcher.end(30)
        assert program.wait(10) == -signal.SIGTERM
        wait_until(lambda: gone(program.pid), 30, "the end of the group")


def gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def marks(said: str, command: bytes = b"") -> list[int]:
    """The processes in whose environment that is, and in whose command."""
    found = []
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            told = (one / "environ").read_bytes().split(b"\0") if one.name.isdecimal() else []
            if said.encode() in told and command in (one / "cmdline").read_bytes():
                found.append(int(one.name))
    return found


def tables(one: Namespace) -> str:
    command = ["ip", "netns", "exec", one.name, "nft", "list", "tables"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def socket_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]
