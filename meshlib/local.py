"""Control and data plane in one process: `meshlib.connect("mesh/")`, without a network between them.

    files ──load──► documents ──build──► compiler ──resources──► the same decoders and views as anywhere
                                   ▲
    servers of this process ──joined

Rules:

- One `LocalControl` for a path and process, on one daemon thread, for as long as somebody uses it. All
  work is done there: a caller waits, and an event loop is not blocked.
- Files are looked at every `LOOK_SECONDS`, and read when they changed and then stood still for
  `STILL_SECONDS`: an editor empties a file before it writes it. A broken edit changes nothing; it is
  logged once.
- Keys of token issuers (`jwksUri`) are fetched as a control service does, beside all that.
- A server that registers says what it would say to a control service, and is checked in the same way.
- A fork's child knows what its parent knew and looks at the files itself from its first call on.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.grpc_stream import Talk
from meshlib.dataplane.targets import Targets
from meshlib.dataplane.views import KINDS, Views
from meshlib.errors import ConfigError, ControlError
from meshlib.printable import printable
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, from_node
from meshlib.xds.snapshot import Resource

try:
    from meshlib.control.build import Builder
    from meshlib.control.istio.problem import Problem, Severity
    from meshlib.control.jwks import KeyErrands
    from meshlib.control.registration import Registration
    from meshlib.control.serve.closures import Compiler
    from meshlib.control.serve.registration import Joining, specifier
    from meshlib.control.sources.files import FileSource
    from meshlib.control.sources.source import Loaded
except ImportError as missing:
    raise ConfigError(
        f"control: rules from a folder need the extra: pip install 'meshlib[control]' ({missing})"
    ) from missing

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
STILL_SECONDS = 0.05


class Control(Protocol):
    """Who hands out what one process is served."""

    lock: Any
    """Held while anything is loaded, built or handed out."""
    path: str

    def use(self, user: "LocalSource") -> None:
        """Hands out to `user` what there is and what changes, until `leave`."""

    def leave(self, user: "LocalSource") -> None:
        """`user` wants nothing any more."""

    def after_fork_in_child(self) -> None:
        """New locks."""


class LocalControl:
    """What a control service knows of one path of YAML, for this process."""

    def __init__(self, path: str) -> None:
        """Starts nothing. ConfigError: there is no such path."""
        try:
            self._files = FileSource(path)
        except OSError as error:
            raise ConfigError(f"control: {error}") from None
        self.path = path
        self._keys = KeyErrands(self._keys_changed)
        self._other_keys = False
        """Whether other keys than those in the configuration in force are known."""
        self._build = Builder(lambda sources: self._keys.want(sources))
        self._told: frozenset[Problem] = frozenset()
        self._looks: Any = None
        self._seen: Any = None
        self._loaded: tuple[Loaded, tuple[Registration, ...]] | None = None
        self._life, self._count = int(time.time() * 1000), 0
        self._compiler: Compiler | None = None
        self._registrations: dict[int, Registration] = {}
        self._users: dict[int, LocalSource] = {}
        self._unlocked()

    def _unlocked(self) -> None:
        self.lock = threading.RLock()
        """Held while anything is loaded, built or handed out."""
        self._guard = threading.Lock()
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<LocalControl {self.path!r}: {len(self._registrations)} registered>"

    def use(self, user: "LocalSource") -> None:
        """Hands out to `user` what there is and what changes, until `leave`."""
        with self._guard:
            self._users[id(user)] = user
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="meshlib-local", daemon=True)
                self._thread.start()
        self._bell.set()

    def leave(self, user: "LocalSource") -> None:
        """The last one to leave ends the thread."""
        with self._guard:
            self._users.pop(id(user), None)
            thread = self._thread if not self._users else None
        self._bell.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def joined(self, number: int, who: Registration | None) -> None:
        """A server of this process said how it is; None: it left."""
        with self._guard:
            if who is None:
                self._registrations.pop(number, None)
            else:
                self._registrations[number] = who
        self._bell.set()

    def after_fork_in_child(self) -> None:
        """New locks; the thread starts at the next `use`."""
        self._unlocked()
        self._keys.after_fork_in_child()
        self._users = {}

    def _run(self) -> None:
        while True:
            with self._guard:
                users = tuple(self._users.values())
                registrations = tuple(who for _, who in sorted(self._registrations.items()))
                if not users:
                    self._thread = None
                    return
            with self.lock:
                failure = self._renew(registrations)
                for user in users:
                    try:
                        user.refresh(self._compiler, failure)
                    except Exception:
                        # The thread must live: what is wrong for one is not wrong for all.
                        log.exception("%s can't be compiled for %r", self.path, user)
                still = self._looks == self._seen
            self._keys.go()
            self._bell.wait(LOOK_SECONDS if still else STILL_SECONDS)
            self._bell.clear()

    def _renew(self, registrations: tuple[Registration, ...]) -> str:
        """Builds if documents or servers changed; why it could not."""
        try:
            found = self._load()
            other, self._other_keys = self._other_keys, False
            if (
                other
                or self._loaded is None
                or found is not self._loaded[0]
                or registrations != self._loaded[1]
            ):
                self._count += 1
                self._compiler = self._build(found, registrations, f"{self._life}.{self._count}").compiler
                self._loaded = (found, registrations)
        except Exception as error:
            log.exception("%s can't be built; what was there stays in force", self.path)
            self._seen = None  # so that it is read, and tried, again
            self._other_keys = True
            return f"{self.path} can't be built: {error!r}"
        return ""

    def _keys_changed(self) -> None:
        self._other_keys = True
        self._bell.set()

    def _load(self) -> Loaded:
        """The documents as they are; the same object as before if they are the same: the builder knows it."""
        looks, before = self._files.look(), self._looks
        self._looks = looks
        old = self._loaded[0] if self._loaded is not None else None
        if old is not None and (looks == self._seen or looks != before):
            return old
        self._seen = looks
        found = self._files.load()
        self._tell(found.problems)
        return old if old is not None and old.documents == found.documents else found

    def _tell(self, problems: tuple[Problem, ...]) -> None:
        for problem in problems:
            if problem not in self._told:
                level = logging.ERROR if problem.severity is Severity.ERROR else logging.WARNING
                log.log(level, "%s", printable(str(problem)))
        self._told = frozenset(problems)


_controls: dict[str, LocalControl] = {}


def control_at(path: str) -> LocalControl:
    """The one of this process for a path. ConfigError: there is no such path."""
    key = os.path.realpath(path)
    return _controls.get(key) or _controls.setdefault(key, LocalControl(path))


class LocalSource:
    """What one mesh asks of a LocalControl; a `meshlib.dataplane.mesh.Source`."""

    def __init__(
        self,
        settings: Bootstrap,
        client: Client,
        views: Views,
        changed: Callable[[Iterable[str] | None], None],
        control: Control | None = None,
    ) -> None:
        """Starts nothing. `control` None: that of the path in `settings`. ConfigError: there is none."""
        self._control = control or control_at(settings.control)
        self._client = client
        self._views = views
        self._changed = changed
        self._lock = threading.RLock()
        self._targets = Targets(settings, time.monotonic())
        self._names: frozenset[str] = frozenset()
        self._seen: tuple[Any, frozenset[str]] | None = None
        self._refused: dict[tuple[Kind, str], str] = {}
        self._closed = False
        self._using = False
        self.connected = False
        self.since: float | None = None
        self.failure = ""
        self.from_disk: set[str] = set()

    def __repr__(self) -> str:
        return f"<LocalSource {self._control.path!r}: {len(self._names)} targets>"

    def want(self, name: str) -> None:
        """Somebody waits for a target, until `done`."""
        with self._lock:
            if self._closed:
                return
            gone, come = self._targets.wait(name, time.monotonic())
            self._turn(gone, come)
            if self._using and not come:
                return
            self._using = True
        self._control.use(self)

    def done(self, name: str) -> None:
        """Somebody waits no more."""
        with self._lock:
            if self._closed:
                return
            gone, come = self._targets.leave(name, time.monotonic())
            self._turn(gone, come)
        if come:
            self._control.use(self)

    def touch(self, name: str) -> None:
        """A target was used now."""
        self._targets.touch(name, time.monotonic())

    def load(self, name: str) -> bool:
        """Whether the target is known: there is nothing older than the files."""
        return name in self._views.targets

    def resolved(self, clusters: Iterable[str]) -> None:
        """The names of these clusters stand for something else now."""
        with self._lock:
            if self._closed:
                return
            self._views.resolved(clusters)
        self._changed(None)

    def lacking(self, name: str) -> str:
        """Nothing else is read."""
        return "of a folder no last good configuration is kept"

    def close(self) -> None:
        """Nothing is handed out any more."""
        with self._lock:
            self._closed = True
            self.connected = False
        self._control.leave(self)

    def refresh(self, compiler: Compiler | None, failure: str) -> None:
        """On the control's thread: takes what changed in this configuration."""
        with self._lock:
            self._forget(self._targets.idle(time.monotonic()))
            names = self._names
        self.failure = failure
        if compiler is None or self._seen == (compiler, names):
            return
        resources = tuple(compiler.resources(self._client, names))
        with self._lock:
            if self._closed:
                return
            for kind in KINDS:
                self._apply(kind, compiler.version, {r.name: r for r in resources if r.kind is kind}, names)
            self._seen = (compiler, names)
            if not self.connected:
                self.connected, self.since = True, time.monotonic()
        self._changed(None)

    def _apply(self, kind: Kind, version: str, found: dict[str, Resource], names: frozenset[str]) -> None:
        held = self._views.held(kind)
        changed = {
            name: resource
            for name, resource in found.items()
            if resource.version not in (held.get(name), self._refused.get((kind, name)))
        }
        needed = names if kind is Kind.LISTENER else self._views.needs()[kind]
        refused = self._views.apply(kind, version, changed, needed - found.keys())
        for name in changed:
            self._refused.pop((kind, name), None)
        for name, reason in refused.items():
            self._refused[kind, name] = found[name].version
            told = printable(f"{name} of configuration {version}: {reason}")
            log.error("refused %s %s", kind.short, told)

    def _turn(self, gone: list[str], come: list[str]) -> None:
        self._views.want(come)
        self._names |= frozenset(come)
        self._forget(gone)

    def _forget(self, names: list[str]) -> None:
        if names:
            self._names -= frozenset(names)
            self._views.forget(names)

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork. In the order in which the control's thread locks."""
        self._control.lock.acquire()
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()
        self._control.lock.release()

    def after_fork_in_child(self, node: Any) -> None:
        """Knows what its parent knew."""
        self._lock = threading.RLock()
        self._client = from_node(node)
        self._targets.alone()
        self._using = False
        self._control.after_fork_in_child()


local_source = LocalSource


class LocalRegistrar:
    """Takes a registration's talk to the LocalControl of its process; see `grpc_stream.KeptStream`."""

    def __init__(self, _name: str, address: str, _path: str, talk: Talk) -> None:
        """`address` is the control's path. ConfigError: there is no such path."""
        self._control = control_at(str(Path(address)))
        self._talk = talk
        self._joining = Joining()

    def start(self) -> None:
        """Joins."""
        self._talk.opened()
        self._say()
        self._talk.take(specifier().SerializeToString())

    def wake(self) -> None:
        """There is something to say."""
        self._say()

    def close(self) -> None:
        """Leaves."""
        self._control.joined(id(self), None)

    def after_fork_in_child(self) -> None:
        """The registration stays in force in the child, too: its parent serves."""

    def _say(self) -> None:
        for message in self._talk.ask():
            said = pb.HealthCheckRequestOrEndpointHealthResponse.FromString(message)
            try:
                who = self._joining.received(said)
            except ControlError as error:
                raise ConfigError(f"this server can't be registered: {error}") from None
            if not said.HasField("health_check_request"):
                self._control.joined(id(self), who)
