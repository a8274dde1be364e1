"""A captured network namespace, held: which one it is, and whether it is still as it was.

Rules:

- What is at a path may be another namespace a moment later. It is opened once; from then on it is entered by
  its descriptor, by the Envoy as well: by a link, whose name is the namespace's number.
- Nobody else gets that number as long as it is held, or a socket of an Envoy is in it. So another namespace
  at the same path has another link: an Envoy goes on with the sockets of a listener that drains, if the next
  is at the same address, and would listen in the one that is gone.
- The descriptor is not of what is mounted at the path: that can be unmounted.
- The kernel tells a socket in it of each change of rules: they are read again only then.
"""

import ctypes
import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from meshlib.agent import netns
from meshlib.agent.command import run
from meshlib.errors import ConfigError

TABLE = "meshlib"
"""The name of both tables."""
_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER, _CHANGES_OF_RULES = 12, 1 << 6
"""NFNLGRP_NFTABLES, the seventh group."""
_MOST_HEARD = 100
"""Messages at a time; what is left is heard next time."""


class Hold:
    """One namespace, from its capture on. Close it."""

    def __init__(self, path: str, folder: Path) -> None:
        """The one that is at a path now; `folder` is for its link. OSError: it can't be entered."""
        self.path = path
        self._descriptor, self._ear = _entered(path)
        found = os.fstat(self._descriptor)
        self.number = found.st_dev, found.st_ino
        self._target = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._link = folder / str(self.number[1])
        self._rules = ""
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            new = self._link.with_suffix(".new")
            new.unlink(missing_ok=True)
            new.symlink_to(self._target)
            new.replace(self._link)
        except OSError:
            self.close()
            raise

    @property
    def link(self) -> str:
        """The path by which it is entered, whatever becomes of the one by which it was found."""
        return str(self._link)

    async def settle(self) -> None:
        """The rules are as they should be now. CommandFailed; ConfigError."""
        self._heard()
        self._rules = await self._listed()

    async def lost(self) -> str:
        """What became of it; empty: it is at its path, and has its rules."""
        now = netns.number(self.path)
        if now is None or now[0] != self.number[0]:
            return f"the network namespace {self.path} is gone"
        if now != self.number:
            return f"another network namespace is at {self.path}"
        if not self._heard():
            return ""
        try:
            same = await self._listed() == self._rules
        except (OSError, ConfigError):
            same = False
        return "" if same else f"somebody changed its rules in {self.path}"

    def close(self) -> None:
        """Lets it go. Twice is once."""
        if self._descriptor < 0:
            return
        with suppress(OSError):
            # Who holds the same one now has made the link its own.
            if str(self._link.readlink()) == self._target:
                self._link.unlink()
                self._link.parent.rmdir()
        self._ear.close()
        os.close(self._descriptor)
        self._descriptor = -1

    async def _listed(self) -> str:
        """Both tables, without what is counted."""
        asked = ["nsenter", f"--net={self.link}", "nft", "-s", "list", "table"]
        return "".join([await run(*asked, family, TABLE) for family in ("ip", "ip6")])

    def _heard(self) -> bool:
        """Whether any rules in it changed since it was asked last."""
        heard = False
        for _ in range(_MOST_HEARD):
            try:
                self._ear.recv(65536)
            except OSError as error:
                return heard or error.errno == errno.ENOBUFS
            heard = True
        return heard


def sweep(folder: Path) -> list[Path]:
    """Removes the links in it that lead nowhere any more, for who held them was killed; says which."""
    links = sorted(folder.iterdir()) if folder.is_dir() else []
    gone = [one for one in links if (found := netns.number(one)) is None or str(found[1]) != one.name]
    with suppress(OSError):
        for one in gone:
            one.unlink()
        folder.rmdir()
    return gone


def _entered(path: str) -> tuple[int, socket.socket]:
    """A descriptor of the namespace at a path, and a socket in it that hears of changes of rules. OSError."""
    found: list[tuple[int, socket.socket]] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(file, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"{path} can't be entered")
            finally:
                os.close(file)
            ear = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            try:
                ear.setblocking(False)
                ear.bind((0, _CHANGES_OF_RULES))
                found.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY), ear))
            except OSError:
                ear.close()
                raise
        except OSError as error:
            failed.append(error)

    # A thread that entered a namespace is of no other use.
    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
