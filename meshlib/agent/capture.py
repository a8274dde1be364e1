"""What is captured of a network namespace, and how: nftables rules in it that lead to the node's Envoy.

    out   TCP to anywhere else ─► 127.0.0.1:15001    UDP to port 53, wherever ─► 127.0.0.1:15053
    in    TCP from anywhere else ─► 15006, but for 15008, where the Envoy listens itself

Rules:

- Closed, not open: the rules stand before there is a listener, and stay when the Envoy is gone. A connection
  is refused then.
- What stays within the namespace is the workload's own affair: it is not captured, but for DNS. So is what
  the Envoy sends to the workload.
- Nobody speaks to the captured ports themselves: such a connection would lead the Envoy to itself.
- What listens at the loopback alone is not reached from elsewhere. The kernel would see to it, but only after
  the redirection, and the Envoy would call it then.
- What comes in is for the namespace's own addresses. Otherwise, where the kernel forwards it or takes it for
  the loopback (`route_localnet`), a neighbour would call others as the workload: the Envoy goes on to where
  it was going.
- IPv6 has no way around: nothing but the namespace's own loopback.
- Other UDP, and what is neither TCP nor UDP, passes: as with Istio, it is not of the mesh.
- Two tables named `meshlib`, put and replaced at once; what others put into the namespace is not touched.
- The node's own namespace never gets any. Any other is written down before it gets them, so that whoever
  comes after a crash knows where to look.
- What is captured is held (`hold.py`): it is seen when it is not what it was any more.
"""

import asyncio
import json
from pathlib import Path

from meshlib.agent.command import CommandFailed, run
from meshlib.agent.hold import TABLE, Hold, sweep
from meshlib.xds.names import DNS_PORT as DNS
from meshlib.xds.names import HBONE_PORT as HBONE
from meshlib.xds.names import INBOUND_PORT as INBOUND
from meshlib.xds.names import OUTBOUND_PORT as OUTBOUND

_RELEASED = f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip6 {TABLE}
delete table ip6 {TABLE}
"""
# `delete` of a table that is not there fails, so each is made first: the whole is one transaction.
RULES = f"""\
{_RELEASED}
table ip {TABLE} {{
  chain guard_output {{
    type filter hook output priority mangle; policy accept;
    oifname "lo" tcp dport {{ {OUTBOUND}, {INBOUND} }} reject with tcp reset
  }}
  chain guard_prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    iifname != "lo" ip saddr 127.0.0.0/8 drop
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" meta l4proto tcp fib daddr type != local drop
    iifname != "lo" tcp dport {{ {OUTBOUND}, {INBOUND} }} reject with tcp reset
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    udp dport 53 redirect to :{DNS}
    oifname "lo" accept
    meta l4proto tcp redirect to :{OUTBOUND}
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" accept
    tcp dport {HBONE} accept
    meta l4proto tcp redirect to :{INBOUND}
  }}
}}
table ip6 {TABLE} {{
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
  }}
}}
"""


class Captures:
    """The namespaces that have rules of ours; known beyond a crash by a file."""

    def __init__(self, record: Path) -> None:
        """`record`: the file, whose folder there must be."""
        self._record, self._links = record, record.with_suffix(".netns")
        self._lock = asyncio.Lock()
        self._held = _read(record)

    @property
    def held(self) -> frozenset[str]:
        """Their paths: also those that an earlier life left behind."""
        return frozenset(self._held)

    async def capture(self, netns: str) -> Hold:
        """Puts the rules in force, in the place of older ones, in the namespace that is at a path now.

        CommandFailed; OSError: nothing is open then.
        """
        if not _is_namespace(netns):
            raise CommandFailed(f"{netns} is not a network namespace")
        if _is_own(netns):
            raise CommandFailed(f"{netns} is the network namespace of this node itself")
        async with self._lock:
            self._write(self._held | {netns})
        found = Hold(netns, self._links)
        try:
            await _nft(found.link, RULES)
            await found.settle()
        except BaseException:
            found.close()
            raise
        return found

    def sweep(self) -> list[Path]:
        """Removes what is left of the links of an agent that was killed; says of which."""
        return sweep(self._links)

    async def release(self, netns: str) -> None:
        """Takes them away; a namespace that is gone, or is the node's own, has none.

        CommandFailed: they are still there.
        """
        try:
            if _is_foreign(netns):
                await _nft(netns, _RELEASED)
        except CommandFailed:
            if _is_foreign(netns):
                raise
        await self.forget(netns)

    async def forget(self, netns: str) -> None:
        """It goes, and its rules with it."""
        async with self._lock:
            self._write(self._held - {netns})

    def _write(self, held: frozenset[str]) -> None:
        if held:
            new = self._record.with_suffix(".new")
            new.write_text(json.dumps(sorted(held)))
            new.replace(self._record)
        else:
            self._record.unlink(missing_ok=True)
        self._held = held


async def _nft(netns: str, rules: str) -> None:
    await run("nsenter", f"--net={netns}", "nft", "-f", "-", given=rules)


def _is_namespace(path: str) -> bool:
    """What was mounted there may be gone, and the file still be there."""
    try:
        return Path(path).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def _is_own(path: str) -> bool:
    return Path(path).samefile("/proc/self/ns/net")


def _is_foreign(path: str) -> bool:
    """One that is there, and not the node's own."""
    return _is_namespace(path) and not _is_own(path)


def _read(record: Path) -> frozenset[str]:
    try:
        return frozenset(str(one) for one in json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return frozenset()
