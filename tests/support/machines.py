"""Machines that are network namespaces, at one bridge: what passes between them is seen there. Needs root.

this process (the control service, Python peers) ── bridge ── machine a (its node and pods)
                                                      └────── machine b (its node and pods)
"""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import MESHLIB, wait_until
from support.secure_mesh import SecureMesh

from meshlib.agent.node_socket import NodeUnreachable, ask
from meshlib.control.ca.nodes import allow
from meshlib.identity.spiffe import SpiffeId

_numbers = itertools.count(1)


def system(*words: str, **options: Any) -> str:
    """Runs a command of the system."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60, **options).stdout


@dataclass(eq=False)
class Machine:
    """One machine; its pods have addresses of its `subnet`."""

    name: str
    netns: str
    address: str
    subnet: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        """Of its node's agent."""
        return self.folder / "node.sock"

    def start(self, name: str, *command: str, **environ: str) -> "Started":
        """Something that runs on it."""
        inherited = {each: value for each, value in os.environ.items() if not each.startswith("MESHLIB_")}
        log = self.folder / f"{name}-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", *command],
                env=inherited | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return Started(process, log)

    def node(self, mesh: SecureMesh, *options: str, renewing: float = 0.0) -> "Started":
        """Its node's agent, which is ready; `renewing`: certificates, after that share of their term."""
        often = [sys.executable, "-m", "support.renewing", str(renewing), *MESHLIB[2:]]
        who = SpiffeId("cluster.local", "meshlib-node", self.name)
        allow(mesh.folder / "ca", self.name, ["default/*"])
        found = self.start(
            "node",
            *(
                *(often if renewing else MESHLIB),
                "node",
                "--name",
                self.name,
                "--socket",
                str(self.socket),
                "--subnet",
                self.subnet,
            ),
            *("--concurrency", "1", "--drain", "1", *options),
            MESHLIB_CONTROL=mesh.address,
            MESHLIB_CA_FINGERPRINT=mesh.authority.fingerprint,
            MESHLIB_TOKEN=mesh.tokens.issue(who, 600, time.time()),
            MESHLIB_STATE_DIR=str(self.folder / "state"),
            PYTHONPATH=str(Path(__file__).parents[1]),
        )
        found.wait_for(f"node {self.name} is ready")
        return found

    def run(self, service: str, *command: str, options: Sequence[str] = (), **environ: str) -> "Started":
        """A program as a workload of its node."""
        return self.start(
            service,
            *(*MESHLIB, "node", "run", "--socket", str(self.socket), "--name", service),
            *("--service", service, "--account", service, "--port", "9080", *options, "--", *command),
            **environ,
        )

    def workloads(self) -> dict[str, dict[str, Any]]:
        """What its node lists, by name."""
        try:
            said = asyncio.run(ask(self.socket, {"do": "list"}))
        except NodeUnreachable:
            return {}
        return {one["name"]: one for one in said["workloads"]}

    def inside(self, netns: str, *command: str) -> str:
        """What a command says in a pod."""
        return system("nsenter", f"--net={netns}", *command)


@dataclass(frozen=True)
class Pod:
    """A namespace that somebody else made, with an address of its machine's."""

    machine: Machine
    name: str
    address: str

    @property
    def path(self) -> str:
        """By which it is entered."""
        return f"/run/netns/{self.name}"

    def make(self) -> None:
        """It is there, with its cable."""
        system("ip", "netns", "add", self.name)
        outer, inner, router = ["ip", "-n", self.machine.netns], ["ip", "-n", self.name], self._router
        system(*outer, "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        system(*outer, "addr", "add", f"{router}/32", "dev", "pod0")
        system(*outer, "link", "set", "pod0", "up")
        system(*outer, "route", "add", f"{self.address}/32", "dev", "pod0", "src", self.machine.address)
        system(*inner, "addr", "add", f"{self.address}/32", "dev", "eth0")
        system(*inner, "link", "set", "eth0", "up")
        system(*inner, "link", "set", "lo", "up")
        system(*inner, "route", "add", router, "dev", "eth0", "scope", "link")
        system(*inner, "route", "add", "default", "via", router)

    def remove(self) -> None:
        """It and its cable go, if they are there; who is in it stays."""
        for command in (
            ["ip", "-n", self.machine.netns, "link", "del", "pod0"],
            ["ip", "netns", "del", self.name],
        ):
            subprocess.run(command, check=False, capture_output=True)

    @property
    def _router(self) -> str:
        return self.machine.subnet.replace(".0/28", ".13")


@contextlib.contextmanager
def pod(machine: Machine) -> Iterator[Pod]:
    """One for the time of the block."""
    made = Pod(machine, f"{machine.netns}-pod", machine.subnet.replace(".0/28", ".14"))
    try:
        made.make()
        yield made
    finally:
        made.remove()


@dataclass
class Started:
    """A process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        """All of it so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it says that; fails when it ends before."""
        wait_until(lambda: text in self.said or self.process.poll() is not None, 60, f"{text}: {self.said}")
        assert text in self.said, self.said

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tells it to end; its status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@dataclass
class Underlay:
    """The bridge, and this process's address at it."""

    bridge: str
    address: str
    folder: Path
    prefix: str
    machines: list[Machine] = field(default_factory=list)

    def machine(self, name: str) -> Machine:
        """One more machine, which is removed with the bridge."""
        number = len(self.machines) + 2
        netns, link = f"{self.bridge}-{name}", f"{self.bridge}{number}"
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        made = Machine(name, netns, f"{self.prefix}.0.{number}", f"{self.prefix}.{number}.0/28", folder)
        self.machines.append(made)
        system("ip", "netns", "add", netns)
        inner = ["ip", "-n", netns]
        system("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns)
        system("ip", "link", "set", link, "master", self.bridge, "up")
        system(*inner, "link", "set", "lo", "up")
        system(*inner, "addr", "add", f"{made.address}/24", "dev", "eth0")
        system(*inner, "link", "set", "eth0", "up")
        system("nsenter", f"--net=/run/netns/{netns}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        # Who routes between machines is not a node's affair.
        system("ip", "route", "add", made.subnet, "via", made.address)
        for other in self.machines[:-1]:
            system(*inner, "route", "add", other.subnet, "via", other.address)
            system("ip", "-n", other.netns, "route", "add", made.subnet, "via", made.address)
        return made

    @contextlib.contextmanager
    def seen(self) -> Iterator[Path]:
        """A capture of all TCP that passes during the block."""
        file = self.folder / "seen.pcap"
        command = ["tcpdump", "-i", self.bridge, "--immediate-mode", "-U", "-s", "0", "-w", str(file), "tcp"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "listening on" in process.stderr.readline()
            try:
                yield file
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(20)


@contextlib.contextmanager
def underlay(folder: Path) -> Iterator[Underlay]:
    """A bridge for the time of the block."""
    number = next(_numbers)
    bridge = f"mlb{os.getpid() % 10**6}{chr(96 + number)}"
    made = Underlay(bridge, "", folder, f"10.{100 + os.getpid() % 99 + number}")
    made.address = f"{made.prefix}.0.1"
    system("ip", "link", "add", bridge, "type", "bridge")
    try:
        system("ip", "addr", "add", f"{made.address}/24", "dev", bridge)
        system("ip", "link", "set", bridge, "up")
        yield made
    finally:
        for machine in made.machines:
            _end(machine)
        # A namespace goes when its last connection is over, which takes a while; its link goes now.
        for number in range(2, len(made.machines) + 2):
            subprocess.run(["ip", "link", "del", f"{bridge}{number}"], check=False, capture_output=True)
        system("ip", "link", "del", bridge)


def _end(machine: Machine) -> None:
    for process in reversed(machine.processes):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    for log in sorted(machine.folder.glob("*.log")):
        print(f"--- {machine.name} {log.name}\n{log.read_text(errors='replace')}")
    subprocess.run(["ip", "netns", "del", machine.netns], check=False, capture_output=True)
