"""Network namespaces with one workload each, captured as the agent of a node captures them. Needs root.

A thread that has entered a namespace makes sockets there, which any other thread may then use: applications
and callers are of this process.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_NUMBERS = itertools.count(1)
_CLONE_NEWNET = 0x40000000
_RULES = """
table ip meshlib {
  chain output {
    type nat hook output priority -100; policy accept;
    ip saddr 127.0.0.6 accept
    udp dport 53 redirect to :15053
    ip daddr 127.0.0.0/8 accept
    oifname "lo" accept
    meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" accept
    tcp dport 15008 accept
    meta l4proto tcp redirect to :15006
  }
}
"""


@dataclass(frozen=True)
class Pod:
    """A namespace; `address` is its own, `host` the other end of its link."""

    name: str
    address: str
    host: str

    @property
    def path(self) -> Path:
        """Its file."""
        return Path("/run/netns") / self.name

    def inside(self, work: Callable[[], T]) -> T:
        """What `work` gives in a thread that is in the namespace."""
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                with self.path.open() as file:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                found.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def connect(self, host: str, port: int, timeout: float = 10.0) -> socket.socket:
        """A connection that the workload makes."""
        return self.inside(lambda: socket.create_connection((host, port), timeout))

    def listen(self, port: int, host: str = "0.0.0.0") -> socket.socket:
        """A socket at which the workload listens."""
        return self.inside(lambda: socket.create_server((host, port), backlog=64))

    def datagrams(self) -> socket.socket:
        """A socket of UDP of the workload."""
        return self.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    @contextlib.contextmanager
    def resolving(self) -> Iterator[None]:
        """Programs that `ip netns exec` starts for the time of the block ask a name server."""
        folder = Path("/etc/netns") / self.name
        folder.mkdir(parents=True)
        try:
            (folder / "resolv.conf").write_text("nameserver 10.1.2.3\n")
            yield
        finally:
            shutil.rmtree(folder)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def pod(*, captured: bool = True) -> Iterator[Pod]:
    """A namespace for the time of the block."""
    number = next(_NUMBERS)
    name = f"mlt{os.getpid()}-{number}"
    link, inner = f"mlt{os.getpid() % 10**6}h{number}", f"mlt{os.getpid() % 10**6}p{number}"
    start = f"10.{200 + os.getpid() % 50}.{(os.getpid() // 50 * 8 + number) % 250}"
    made = Pod(name, f"{start}.2", f"{start}.1")
    _ip("netns", "add", name)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("addr", "add", f"{made.host}/30", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "addr", "add", f"{made.address}/30", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "route", "add", "default", "via", made.host)
        if captured:
            nft = ["ip", "netns", "exec", name, "nft", "-f", "-"]
            subprocess.run(nft, input=_RULES.encode(), check=True, capture_output=True)
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
