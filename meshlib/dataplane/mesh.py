"""The mesh as one process sees it: what it knows (`view`), what it learned (`ledger`), and how to ask.

Rules:

- A target is asked for at its first call, which waits up to `first_call_timeout`; every later call
  finds it in a mapping and waits for nothing. One that was forgotten is asked for again.
- A control service that can't be reached within `UNHEARD` seconds is taken for down: what it said last
  is read from disk, with a warning. With nothing on disk the first call raises ControlUnavailable.
- One list of steps waits, for threads and for tasks of any number of event loops.
"""

import contextlib
import functools
import itertools
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.core.balance.pick import prepare
from meshlib.core.ledger import Ledger
from meshlib.core.view import View
from meshlib.dataplane import dns, fork
from meshlib.dataplane.address import likely_address
from meshlib.dataplane.ads import Ads, decoders
from meshlib.dataplane.cache import Cache
from meshlib.dataplane.grpc_stream import KeptStream
from meshlib.dataplane.source import Changed, MakeSource, Source
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib.dataplane.tls import Contexts
from meshlib.dataplane.views import Views
from meshlib.errors import Closed, ControlUnavailable
from meshlib.xds.kinds import Kind
from meshlib.xds.names import inbound_listener
from meshlib.xds.node import Client, Flavour, Locality, to_node

if TYPE_CHECKING:
    from meshlib.core.inbound import Inbound
    from meshlib.dataplane.certs import Certs
    from meshlib.dataplane.network import Network

log = logging.getLogger(__name__)

UNHEARD = 1.0
PATIENCE = 0.6
"""The share of `first_call_timeout` that DNS may take of it."""
_numbers = itertools.count(1)


class Listener(Protocol):
    """Who wants to know of changes: connections."""

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """These clusters are not as they were."""


class User(Protocol):
    """Who found a mesh by itself, and would find another one."""

    def mesh_closed(self) -> None:
        """On any thread: the mesh is of no use any more."""


def ads_source(settings: Bootstrap, client: Client, views: Views, changed: Changed) -> Source:
    """The stream to the control service at `settings.control`."""
    cache = None
    if settings.state_dir is not None:
        who = (settings.control, client.namespace, client.service_account, repr(client.labels))
        cache = Cache(settings.state_dir, (*who, str(client.locality)))
    keep = secured(identity(settings))
    return Ads(settings, to_node(client), views, cache, changed=changed, keep=keep)


def identity(settings: Bootstrap) -> "Certs | None":
    """The workload's certificate; None: control runs in this process, or is talked to in plain text."""
    if settings.local or settings.allow_plaintext:
        return None
    from meshlib.dataplane.certs import certs_of  # which loads cryptography

    return certs_of(settings)


def secured(certs: "Certs | None") -> Callable[..., KeptStream]:
    """Makes streams to the control service that are secured by that certificate, or not at all."""
    if certs is None:
        return KeptStream
    return functools.partial(KeptStream, secure=certs.secure, follow=certs.follow, doubt=certs.doubt)


class Mesh:
    """One workload's place in the mesh. Thread-safe; survives forks; close it, or use it in `with`."""

    def __init__(
        self,
        settings: Bootstrap | None = None,
        source: MakeSource = ads_source,
        decode: Mapping[Kind, Callable[[Any], Any]] | None = None,
        network: "Network | None" = None,
        clock: Callable[[], float] = time.monotonic,
        dice: random.Random | None = None,
    ) -> None:
        """Starts nothing. `settings` None: from the environment; `decode` None: all decoders; `network` None:
        requests are sent over sockets; `clock` gives seconds, never backwards; `dice` None: fair ones.
        """
        self.bootstrap = settings or bootstrap()
        self.network = network
        self.clock = clock
        self.dice = dice or random.Random()  # noqa: S311 - balances, keeps no secret
        self._names = self._resolver()
        self._views = Views(decode or decoders(), published=self._published, names=self._names)
        self._view = self._views.view
        self._live = False
        """Whether the source runs, so that what is known is kept up."""
        self._waiters: dict[str, dict[int, Callable[[], None]]] = {}
        self._guard = threading.RLock()
        self._ledger: Ledger | None = None
        self._address = ""
        self._on_close: list[Callable[[], None]] = []
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._listeners: tuple[weakref.ref[Listener], ...] = ()
        """Replaced, never changed: who publishes holds the source's lock, and may wait for none that is held
        around a fork, which takes that one last.
        """
        self._closed = False
        self._told_of_disk = False
        self._certs = identity(self.bootstrap)
        if self._certs is not None:
            self._certs.use()
        self._source: Source = source(self.bootstrap, self._client(), self._views, self._changed)
        self._asked = False
        self.telemetry = Telemetry(
            self.bootstrap, lambda: self._view, self._principal, self._certificate_ends, dice=self.dice
        )
        fork.watch(self)

    def _resolver(self) -> dns.Resolver | None:
        """Who looks names up; None: they go to the network as they are."""
        look_up = dns.look_up if self.network is None else self.network.look_up
        if look_up is None:
            return None
        # So that a target is there before its first call is given up.
        patience = PATIENCE * self.bootstrap.first_call_timeout
        return dns.Resolver(lambda clusters: self._source.resolved(clusters), look_up, patience=patience)

    def _certificate_ends(self) -> float | None:
        return None if self._certs is None else self._certs.ends

    def _client(self) -> Client:
        who = self.bootstrap
        return Client(
            flavour=Flavour.MESHLIB,
            namespace=who.namespace,
            service_account=who.service_account,
            labels=who.labels,
            locality=Locality.parse(who.locality),
            id=f"meshlib~{os.uname().nodename}~{os.getpid()}~{next(_numbers)}"[:253],
        )

    def __repr__(self) -> str:
        return f"<Mesh {self.bootstrap.namespace}/{self.bootstrap.service_account}: {self.state}>"

    @property
    def state(self) -> str:
        """Connected or not and for how long, which configuration, how many targets; for people."""
        source, view = self._source, self._view
        if self._closed:
            how = "closed"
        elif source.connected:
            how = f"connected to {self.bootstrap.control} for {self.clock() - (source.since or 0.0):.0f} s"
        elif source.failure:
            how = f"not connected to {self.bootstrap.control} ({source.failure})"
        else:
            how = "not started" if not self._asked else f"connecting to {self.bootstrap.control}"
        disk = f", {len(source.from_disk)} of them from disk" if source.from_disk else ""
        version = f"configuration {view.version}" if view.version else "no configuration"
        return f"{how}; {version}, {len(view.tables)} targets{disk}"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def view(self) -> View:
        """What is known now. Immutable."""
        return self._view

    @property
    def connected(self) -> bool:
        """Whether the control service is being heard."""
        return self._source.connected

    @property
    def certs(self) -> "Certs | None":
        """This workload's certificate; None: control runs in this process, or is talked to in plain text."""
        return self._certs

    @property
    def contexts(self) -> Contexts | None:
        """TLS by this workload's certificate; None: it has none."""
        certs = self.certs
        return None if certs is None else certs.contexts

    def _principal(self) -> str:
        """This workload's `spiffe://…`; empty: it has no certificate (yet)."""
        certs = self.certs
        return certs.held.principal if certs is not None and certs.held is not None else ""

    @property
    def ledger(self) -> Ledger:
        """What was learned, one a mesh and process."""
        if self._ledger is None:
            with self._guard:
                self._ledger = self._ledger or Ledger(self._address)
        return self._ledger

    def prepare(self, name: str) -> View:
        """Waits until it is known what to do with requests to `host:port`; at once, if it is. Gives the view
        that knows it: a later one may have forgotten it.

        ControlUnavailable: nothing is known of it, and control is not reached or does not answer; or there is
        no room for it. RefusedResource: what control says of it can't be used, and nothing is older. Closed.
        """
        known = self.known(name)
        if known is not None:
            return known
        changed = threading.Event()
        with self._notified(name, changed.set):
            for seconds in self._steps(name, changed.clear):
                changed.wait(seconds)
            return self._view

    async def aprepare(self, name: str) -> View:
        """`prepare` for asyncio; never blocks the event loop."""
        known = self.known(name)
        if known is not None:
            return known
        import asyncio  # which an application without tasks need not load

        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(changed.set)

        with self._notified(name, wake):
            for seconds in self._steps(name, changed.clear):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await changed.wait()
            return self._view

    def prepare_inbound(self, port: int) -> "Inbound":
        """Waits until it is known what a served port asks of its callers; fails as `prepare` does, and with
        ControlUnavailable where control knows no policy.
        """
        name = inbound_listener(port)
        self.prepare(name)
        return self._inbound(name, port)

    async def aprepare_inbound(self, port: int) -> "Inbound":
        """`prepare_inbound` for asyncio."""
        name = inbound_listener(port)
        if self.known(name) is None:
            await self.aprepare(name)
        return self._inbound(name, port)

    def _inbound(self, name: str, port: int) -> "Inbound":
        found = self._view.inbound.get(name)
        if found is None:
            raise ControlUnavailable(
                f"the control service {self.bootstrap.control} has no policy for port {port}"
            )
        return found

    def known(self, name: str) -> View | None:
        """The view, if it says what to do with requests to the target."""
        target = self._views.targets.get(name) if self._live else None
        if target is None or target.failed is not None:
            return None
        self._source.touch(name)
        view = self._view
        forgotten = target.table is not None and name not in view.tables
        return None if forgotten else view

    def _steps(self, name: str, clear: Callable[[], None]) -> Iterator[float]:
        """Yields how many seconds to wait at most for a change; ends when the target is known."""
        start = self.clock()
        deadline = start + self.bootstrap.first_call_timeout
        while True:
            if self._closed:
                raise Closed("the mesh is closed")
            clear()
            source = self._source
            target = self._views.targets.get(name)
            if target is not None:
                if target.failed is not None:
                    raise target.failed
                self._live = not self._closed
                return
            now = self.clock()
            down = not source.connected and (bool(source.failure) or now - start >= UNHEARD)
            if (down or now >= deadline) and source.load(name):
                self._tell_of_disk(source)
                continue
            if now >= deadline:
                raise ControlUnavailable(self._why_unknown(name, source))
            yield min(deadline - now, UNHEARD)

    def _tell_of_disk(self, source: Source) -> None:
        if not self._told_of_disk:
            self._told_of_disk = True
            log.warning(
                "the control service %s can't be reached (%s); serving by the last good configuration in %s",
                self.bootstrap.control,
                source.failure or "no answer yet",
                self.bootstrap.state_dir,
            )

    def _why_unknown(self, name: str, source: Source) -> str:
        waited = f"within {self.bootstrap.first_call_timeout:g} s"
        if source.connected and not self._views.wants(name):
            return (
                f"{name}: all {self.bootstrap.max_targets} hosts that may be held (MESHLIB_MAX_TARGETS) are "
                f"still waited for, and its turn did not come {waited}"
            )
        if source.connected:
            missing = ", ".join(sorted(self._views.missing(name))) or "an answer"
            return f"{name}: the control service {self.bootstrap.control} did not send {missing} {waited}"
        why = source.failure or "no answer"
        return (
            f"{name}: the control service {self.bootstrap.control} was not reached {waited} ({why}), and "
            f"{source.lacking(name)}. {_what_to_do(why)}"
        )

    @contextlib.contextmanager
    def _notified(self, name: str, wake: Callable[[], None]) -> Iterator[None]:
        """Somebody waits for a target, and is told of what changes."""
        number = next(_numbers)
        with self._guard:
            self._waiters.setdefault(name, {})[number] = wake
        self._asked = True
        source = self._source
        if self._names is not None:
            self._names.start()
        try:
            source.want(name)
            yield
        finally:
            source.done(name)
            with self._guard:
                waiters = self._waiters.get(name, {})
                waiters.pop(number, None)
                if not waiters:
                    self._waiters.pop(name, None)

    def _published(self, view: View, clusters: Iterable[str]) -> None:
        if view.roots_pem and view.roots_pem != self._view.roots_pem and (certs := self.certs) is not None:
            certs.trust(view.roots_pem.decode())
        self._make_tables(view, clusters)
        self._view = view
        self.telemetry.take(view.telling)
        if self._ledger is not None:
            self._ledger.prune(view, clusters)
        for listener in self._listeners:
            one = listener()
            if one is not None:
                one.endpoints_changed(view, clusters)

    def _make_tables(self, view: View, names: Iterable[str]) -> None:
        """Those in which clusters look keys up, here, where no request waits for it."""
        for name in names:
            cluster, endpoints = view.clusters.get(name), view.endpoints.get(name)
            if cluster is not None and cluster.hash_table is not None and endpoints is not None:
                self._address = self.ledger.address = self._address or likely_address(self.bootstrap)
                prepare(cluster, endpoints, self.ledger.cluster(name), self.clock(), self.dice)

    def _changed(self, names: Iterable[str] | None = None) -> None:
        """On any thread: something may be known of these targets, or the connection was lost."""
        with self._guard:
            told = self._waiters if names is None else [name for name in names if name in self._waiters]
            waiters = [wake for name in told for wake in self._waiters[name].values()]
        for wake in waiters:
            wake()

    # End

    def on_close(self, call: Callable[[], None]) -> None:
        """`call` is called once when the mesh closes (a transport closing its pools)."""
        self._on_close.append(call)

    def used_by(self, user: User) -> None:
        """`user` is told when the mesh closes, if it still lives then."""
        self._users.add(user)

    def told_to(self, listener: Listener) -> None:
        """`listener` is told of changes for as long as it lives."""
        with self._guard:
            alive = [one for one in self._listeners if one() is not None]
            self._listeners = (*alive, weakref.ref(listener))

    def close(self) -> None:
        """Ends the stream and its thread; later calls raise Closed. A second close does nothing."""
        if self._closed:
            return
        self._closed, self._live = True, False
        for call in self._on_close:
            call()
        for user in list(self._users):
            user.mesh_closed()
        self._source.close()
        if self._names is not None:
            self._names.close()
        self.telemetry.close()
        if self._certs is not None:
            self._certs.leave()
        self._changed()

    async def aclose(self) -> None:
        """`close` for asyncio."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Mesh":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._guard.acquire()
        self._source.before_fork()
        if self._names is not None:  # whoever holds the source's lock may want this one
            self._names.before_fork()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        if self._names is not None:
            self._names.after_fork_in_parent()
        self._source.after_fork_in_parent()
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """What is known stays; new locks, dice and ledger; the stream starts at the first call."""
        self._guard = threading.RLock()
        self._waiters = {}
        self._listeners = ()  # connections of the parent's, under whatever lock
        self._ledger = None
        self.dice.seed()
        self._live = self._asked = False
        if self._names is not None:
            self._names.after_fork_in_child()
        self._source.after_fork_in_child(to_node(self._client()))


def _what_to_do(why: str) -> str:
    """About a control service that can't be had, for that reason."""
    if "UNAUTHENTICATED" in why or "PERMISSION_DENIED" in why:
        return "It does not let this workload in; `meshlib ca token` makes a token for MESHLIB_TOKEN"
    if "not trusted" in why or "fingerprint" in why:
        return "MESHLIB_CA_FINGERPRINT or MESHLIB_CA_FILE says whom to trust; `meshlib control` prints it"
    return "Is `meshlib control` running? MESHLIB_CONTROL says where"
