"""The workloads of a node: how each joins the mesh, and leaves it.

    joining   captured (if it has a namespace) ─► certificate ─► registered ─► its listeners are there: ready
    serving   ready, and its program, if it is one that is run, listens: others are sent to it
    leaving   it says that it drains ─► not registered ─► not captured any more

Rules:

- Captured first: between that and being ready it is closed, not open.
- A namespace that is gone, is another now or lost its rules is seen within a quarter of a second: it is
  closed anew at once, or waited for, and the workload leaves and joins.
- What fails is tried again for ever, with pauses of up to ten seconds; what it was is said once, and shown.
- Who leaves is not captured any more. When the agent ends, its workloads stay captured, closed, as after a
  crash, until it comes back or somebody cleans up: a restart opens nothing. It can be told to open them.
- A namespace that was made for a program is never opened: it goes with the program.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from meshlib.agent import netns
from meshlib.agent.admin import Admin, AdminUnreachable
from meshlib.agent.capture import Captures
from meshlib.agent.member import Join, Member, Membership
from meshlib.agent.process import pause
from meshlib.agent.refusal import reason
from meshlib.agent.workload import Workload
from meshlib.errors import ConfigError, MeshError

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_SECONDS = 0.05
WATCH_SECONDS = 0.25
"""Between two looks at a namespace: is it there, is it the same."""
STEADY_SECONDS = 60.0
"""Who was as it should be for so long joins at once when it is not any more."""
THREADS = 64


class Node:
    """All of them. One event loop."""

    def __init__(
        self,
        admin: Admin,
        captures: Captures,
        join: Join,
        own_address: Callable[[], str],
        *,
        refused: Callable[[str], str] = lambda _: "",
        open_at_end: bool = False,
    ) -> None:
        """`own_address`: where others reach the node, for workloads without a namespace. ConfigError.

        `refused`: why the Envoy refuses a listener of a workload, if it does.
        `open_at_end`: what is captured is opened when the node ends.
        """
        self._admin, self._captures, self._join = admin, captures, join
        self._own_address, self._refused = own_address, refused
        self._open_at_end, self._ending = open_at_end, False
        self._members: dict[str, Member] = {}
        self._listed: dict[str, Workload] = {}
        self._wanted: Sequence[Workload] = ()
        """All of the file, also those that can't be enrolled."""
        self._listeners: frozenset[tuple[str, str]] = frozenset()
        """Their names, and in which namespaces they are."""
        self._looking = asyncio.Lock()
        self._looked = -LOOK_SECONDS
        # Each waits for the control service, or for others to hear of it: all of them do at once.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="meshlib-node")

    @property
    def members(self) -> Sequence[Member]:
        """By name."""
        return [self._members[name] for name in sorted(self._members)]

    def enrol(self, workload: Workload, *, listens: bool = True) -> Member:
        """Begins. ConfigError: it can't be, beside the others."""
        self._check(workload)
        member = Member(workload, workload, listens=listens)
        self._members[workload.name] = member
        member.keeping = asyncio.create_task(self._keep(member))
        return member

    async def started(self, name: str, process_id: int) -> None:
        """The program of a workload runs."""
        if name in self._members:
            self._members[name].process_id = process_id

    async def listens(self, name: str) -> None:
        """The program of a workload is there for others."""
        if name in self._members:
            self._members[name].listens = True
            self._members[name].serve()

    async def withdraw(self, name: str) -> None:
        """It leaves; what has not begun can end, too."""
        member = self._members.pop(name, None)
        if member is None:
            return
        if member.keeping is not None:
            member.keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await member.keeping
        membership, member.membership = member.membership, None
        if membership is not None:
            await self._in_thread(membership.drain)
            await self._in_thread(partial(membership.close, stays=self._ending))
        if member.workload.netns:
            await self._release(member.workload.netns)
        if member.held is not None:
            member.held.close()

    async def enrolling(self, workload: Workload) -> AsyncGenerator[Mapping[str, Any], None]:
        """It is one for as long as this is iterated: why it is not ready, again whenever that changes.

        Nobody is sent to it before it `listens`.
        """
        member = self.enrol(workload, listens=False)
        try:
            told: Mapping[str, Any] = {}
            while True:
                now = {"why": member.why, "address": member.workload.address}
                if now != told:
                    told = now
                    yield now
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self.withdraw(workload.name)

    async def listed(self, workloads: Sequence[Workload]) -> None:
        """These are the workloads of the file, from now on."""
        now = {one.name: one for one in workloads}
        gone = [name for name, one in self._listed.items() if now.get(name) != one]
        self._wanted = workloads
        await asyncio.gather(*(self.withdraw(name) for name in gone))
        self._listed = {name: one for name, one in self._listed.items() if name not in gone}
        for name, one in now.items():
            if name not in self._listed:
                try:
                    self.enrol(one)
                except ConfigError as error:
                    log.error("workload %s: %s", name, error)
                else:
                    self._listed[name] = one

    def known(self) -> list[tuple[Workload, bool]] | None:
        """Those that have a certificate, each in the namespace that it has now, and whether the control
        service knows it, and its listeners are there; None: the node ends.
        """
        if self._ending:
            return None
        found = (one for one in self.members if one.membership is not None)
        return [(replace(one.workload, netns=one.link), one.settled) for one in found]

    async def why(self, member: Member) -> str:
        """Why it is not ready now; empty: it is. One that was may have lost its Envoy since."""
        if member.why:
            return self._lacks(member) or member.why
        if await self._listening(member):
            return ""
        return self._lacks(member) or "its Envoy is not there, or has no configuration yet"

    def _lacks(self, member: Member) -> str:
        why = self._refused(member.workload.name)
        if why != member.refusal[0]:
            member.refusal = why, why and f"its Envoy can't serve it: {reason(why)}"
        return member.refusal[1]

    async def clean(self) -> list[str]:
        """What an earlier life left behind, and nobody claims, is taken away; says what that was."""
        return await clean(self._captures, self._claimed())

    async def clean_closed(self) -> tuple[list[str], list[str]]:
        """The same, but that what is captured stays so, for nobody says that it is not wanted: what was taken
        away, and what stays closed.
        """
        claimed, ours = self._claimed(), {one.path for one in netns.ours()}
        closed = {path for path in self._captures.held - claimed - ours if netns.number(path) is not None}
        return await clean(self._captures, claimed | closed), sorted(closed)

    def _claimed(self) -> set[str]:
        members = [one.workload for one in self.members]
        return {one.netns for one in (*members, *self._wanted)} - {""}

    async def drain(self, *names: str) -> None:
        """These say that they leave, and wait for others to have heard of it; without names: all."""
        found = [one for one in self.members if not names or one.workload.name in names]
        parts = [one.membership for one in found if one.membership is not None]
        await asyncio.gather(*(self._in_thread(one.drain) for one in parts))

    def ending(self) -> None:
        """Who leaves from now on leaves because the node ends."""
        self._ending = True

    async def close(self) -> None:
        """All leave."""
        self.ending()
        await asyncio.gather(*(self.withdraw(one.workload.name) for one in self.members))
        self._threads.shutdown(wait=False)

    def _check(self, workload: Workload) -> None:
        if workload.name in self._members:
            raise ConfigError(f"name: there is a workload {workload.name!r} on this node already")
        self._check_netns(workload, self.members)

    def _check_netns(self, workload: Workload, members: Sequence[Member]) -> None:
        """One namespace has one identity. ConfigError: it is another's, maybe by another path."""
        for one in (member.workload for member in members):
            if workload.netns and one.netns and netns.same(workload.netns, one.netns):
                path = "" if workload.netns == one.netns else f", by the path {one.netns}"
                raise ConfigError(f"netns: {workload.netns} is that of {one.name}{path}")

    async def _keep(self, member: Member) -> None:
        """Its lives, one after the other, each in a namespace that is as it was left."""
        if not member.workload.netns:
            await self._live(member, 0, None)
            return
        await self._until(member, lambda: self._close_in(member))
        losses, loop = 0, asyncio.get_running_loop()
        leaving: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                began = loop.time()
                living = group.create_task(self._live(member, losses, leaving))
                why = await self._lost(member)
                living.cancel()
                member.ready.clear()
                member.why, member.captured = why, False
                log.error("workload %s: %s; it is closed anew, leaves and joins", member.workload.name, why)
                losses = 1 if loop.time() - began > STEADY_SECONDS else losses + 1
                leaving = group.create_task(self._part(member, living, leaving))
                await self._until(member, lambda: self._close_in(member))

    async def _close_in(self, member: Member) -> None:
        """What is at its path now is captured."""
        self._claim(member)
        if os.geteuid() != 0:
            raise ConfigError("netns: root is needed to enter a network namespace")
        held, member.held = member.held, await self._captures.capture(member.workload.netns)
        if held is not None:
            held.close()

    async def _lost(self, member: Member) -> str:
        """Waits until its namespace is not what it was, and says so."""
        assert member.held is not None  # noqa: S101 - it is captured
        while not (why := await member.held.lost()):  # noqa: ASYNC110 - others change it
            await asyncio.sleep(WATCH_SECONDS)
        return why

    async def _live(self, member: Member, losses: int, leaving: "asyncio.Task[None] | None") -> None:
        """Joins, when what was before has left, and is ready; the sooner the less often it was lost."""
        if leaving is not None:
            await asyncio.wait((leaving,))
        await asyncio.sleep(pause(losses))
        membership = await self._until(member, lambda: self._begun(member))
        before, member.membership = member.membership, membership
        if before is not None:
            self._threads.submit(before.close)
        while not await self._served(member, membership):  # noqa: ASYNC110 - others change it
            await asyncio.sleep(LOOK_SECONDS)
        member.why = ""
        member.ready.set()
        member.serve()

    async def _served(self, member: Member, membership: Membership) -> bool:
        """Whether it is known to the control service and its listeners are there; if not, why is said."""
        listening = await self._listening(member)
        last = "the control service can't be reached; it has the last good configuration"
        member.why = last if listening else self._lacks(member) or "waiting for the control service"
        return membership.joined and listening

    async def _part(self, member: Member, *before: "asyncio.Task[None] | None") -> None:
        """When these have ended it leaves; whoever is told to stop waits for that."""
        await asyncio.wait([one for one in before if one is not None])
        if member.membership is None:
            return
        leaving = self._in_thread(member.membership.part)
        try:
            await asyncio.shield(leaving)
        except asyncio.CancelledError:
            await leaving
            raise

    async def _begun(self, member: Member) -> Membership:
        member.workload = await self._placed(member.said)
        return await self._joined(replace(member.workload, netns=member.link))

    async def _until(self, member: Member, what: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What it gives in the end: what fails is tried again, also when another namespace is there."""
        failures, path = 0, member.said.netns
        while True:
            seen = netns.number(path)
            try:
                return await what()
            except (MeshError, OSError) as error:
                failures += 1
                if member.why != str(error):
                    member.why = str(error)
                    log.error("workload %s can't join: %s", member.workload.name, error)
            left = pause(failures + 1)
            while left > 0 and netns.number(path) == seen:
                await asyncio.sleep(min(left, WATCH_SECONDS))
                left -= WATCH_SECONDS

    def _claim(self, member: Member) -> None:
        """Nobody else has its namespace from now on; which may not have been there when it was enrolled."""
        if not member.captured:
            self._check_netns(member.workload, [one for one in self.members if one.captured])
            member.captured = netns.number(member.workload.netns) is not None

    async def _placed(self, workload: Workload) -> Workload:
        """With an address. CommandFailed, ConfigError."""
        address = workload.address or (
            await netns.address_of(workload.netns) if workload.netns else self._own_address()
        )
        if not workload.netns and address.startswith("127."):
            own = dict(workload.app_ports)
            for _, port in workload.ports:
                if own.get(port, port) == port:
                    raise ConfigError(
                        f"appPorts: the proxy is at {address}:{port}; the application needs a port of its own"
                    )
        return replace(workload, address=address)

    async def _joined(self, workload: Workload) -> Membership:
        joining = asyncio.ensure_future(self._in_thread(lambda: self._join(workload)))
        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            # The thread goes on; what it brings is nobody's.
            with contextlib.suppress(MeshError, OSError):
                (await joining).close()
            raise

    def _in_thread(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _listening(self, member: Member) -> bool:
        """Whether its listeners are there, in the namespace that it has now; all who wait look together."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() - self._looked >= LOOK_SECONDS:
                try:
                    self._listeners = frozenset(
                        (one.name, one.netns) for one in await self._admin.listening()
                    )
                except AdminUnreachable:
                    self._listeners = frozenset()
                self._looked = loop.time()
        return (f"{member.workload.name}/inbound", member.link) in self._listeners

    async def _release(self, path: str) -> None:
        if netns.is_ours(path):
            await self._captures.forget(path)
            return
        if self._ending and not self._open_at_end:
            return
        wanted = (*(one.workload for one in self.members), *(() if self._ending else self._wanted))
        if any(one.netns and netns.same(path, one.netns) for one in wanted):
            return  # it is another's, or comes back: not open meanwhile
        try:
            await self._captures.release(path)
        except OSError as error:
            log.error("what is captured of %s stays captured: %s", path, error)


async def clean(captures: Captures, claimed: set[str]) -> list[str]:
    """Takes away what is left of workloads that nobody claims, and says what that was.

    Namespaces of ours in which somebody lives are claimed by them. What can't be taken away is told, and
    stays.
    """
    done: list[str] = []
    empty = await asyncio.to_thread(netns.left_over)

    async def taken(what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (OSError, ConfigError) as error:
            log.error("%s can't be removed: %s", what, error)
        else:
            done.append(what)

    for path in sorted(captures.held - claimed - {one.path for one in netns.ours()}):
        if any(netns.same(path, one) for one in claimed):
            await captures.forget(path)  # written otherwise now
        else:
            await taken(f"the rules in {path}", captures.release(path))
    for one in empty:
        if one.path not in claimed:
            await taken(f"the namespace {one.name}", _removed(one, captures))
    return done


async def _removed(one: netns.Namespace, captures: Captures) -> None:
    await netns.remove(one)
    await captures.release(one.path)
