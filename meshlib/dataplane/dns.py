"""Names of DNS clusters, looked up in the background and kept up for as long as a cluster asks for them.

Rules:

- A name is asked for at once, then again when its `refresh` has passed; after a failure when its `retry` has.
- The last good answer stays while nobody answers. That there is no such name, or no address of the family, is
  an answer; but of a name that is one endpoint (LOGICAL_DNS) the last address stays, as in Envoy.
- Who waits for the first answer waits for the patience that it came with; then there are no addresses, until
  there are.
- The system's resolver is asked (getaddrinfo), which blocks and tells no TTL: on daemon threads, `MOST` at
  once. One more keeps the time. A fork's child starts its own.
"""

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.dns import Family, Question
from meshlib.core.balance.endpoints import EndpointSet

log = logging.getLogger(__name__)

MOST = 8
"""Look-ups at once: one may take as long as the system's resolver lets it."""
LEAST_SECONDS = 0.1
"""Between two look-ups of a name, whatever the configuration says."""
_TRIED = {
    Family.AUTO: (socket.AF_INET6, socket.AF_INET),
    Family.V4_ONLY: (socket.AF_INET,),
    Family.V6_ONLY: (socket.AF_INET6,),
    Family.V4_PREFERRED: (socket.AF_INET, socket.AF_INET6),
    Family.ALL: (socket.AF_UNSPEC,),
}
_NOTHING = frozenset(
    found for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if (found := getattr(socket, name, None))
)

LookUp = Callable[[str, Family], tuple[str, ...]]
"""The addresses of a host name, none: it has none. OSError: nobody answers. It may block."""


def look_up(host: str, family: Family) -> tuple[str, ...]:
    """Asks the system's resolver."""
    for asked in _TRIED[family]:
        try:
            found = socket.getaddrinfo(host, None, asked, socket.SOCK_STREAM)
        except UnicodeError:
            return ()  # no name that DNS could have
        except socket.gaierror as error:
            if error.errno not in _NOTHING:
                raise
            continue
        if found:
            return tuple(dict.fromkeys(str(one[4][0]) for one in found))
    return ()


class Names(Protocol):
    """Who knows what the names of clusters stand for."""

    def follow(self, who: str, cluster: Cluster | None) -> None:
        """A cluster asks for its names from now on, in place of those before; None: for nothing."""

    def endpoints(self, who: str) -> EndpointSet | None:
        """The endpoints of a cluster that asks; None: they are not known yet."""
        ...


class AsWritten:
    """Looks nothing up: a name stays one."""

    def __init__(self) -> None:
        self._asked: dict[str, Cluster] = {}

    def follow(self, who: str, cluster: Cluster | None) -> None:
        """See `Names`."""
        if cluster is not None:
            self._asked[who] = cluster
        else:
            self._asked.pop(who, None)

    def endpoints(self, who: str) -> EndpointSet | None:
        """See `Names`."""
        cluster = self._asked.get(who)
        return None if cluster is None or cluster.named is None else cluster.named.endpoints


class _Name:
    """A question, and what is known of it."""

    __slots__ = ("answer", "due", "last", "late", "question", "running", "said", "users")

    def __init__(self, question: Question, now: float) -> None:
        self.question = question
        self.users: dict[str, Cluster] = {}
        self.answer: tuple[str, ...] | None = None
        """None: nobody has answered yet."""
        self.last: tuple[str, ...] = ()
        """The last answer that had addresses."""
        self.due = now
        self.late = math.inf
        """When no answer counts as one without an address."""
        self.said = ""
        """Why there was no answer last time."""
        self.running = False


class Resolver:
    """Looks names up. Thread-safe; starts nothing before `start`."""

    def __init__(
        self,
        changed: Callable[[set[str]], None],
        look_up: LookUp = look_up,
        clock: Callable[[], float] = time.monotonic,
        patience: float = math.inf,
    ) -> None:
        """`changed` is called, on a thread of the resolver, with the clusters whose endpoints may be others
        now. `patience` bounds, in seconds, how long any cluster waits for a first answer.
        """
        self._tell = changed
        self._look_up = look_up
        self._clock = clock
        self._patience = patience
        self._lock = threading.Condition()
        self._names: dict[Question, _Name] = {}
        self._asked: dict[str, Cluster] = {}
        self._thread: threading.Thread | None = None
        self._running = 0
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<Resolver: {len(self._names)} names of {len(self._asked)} clusters, {self._running} look-ups>"
        )

    def follow(self, who: str, cluster: Cluster | None) -> None:
        """See `Names`."""
        with self._lock:
            before = self._asked.get(who)
            if before is cluster:  # also of one that has no names and never had
                return
            now = self._clock()
            old = _questions(before)
            for question in _questions(cluster):
                assert cluster is not None  # noqa: S101 - it has questions
                name = self._names.get(question)
                if name is None:
                    name = self._names[question] = _Name(question, now)
                patience = min(cluster.upstream.connect_timeout, self._patience)
                if name.answer is None:
                    name.late = min(name.late, now + patience)
                name.users[who] = cluster
            for question in old - _questions(cluster):
                name = self._names[question]
                del name.users[who]
                if not name.users:
                    del self._names[question]
            if cluster is None:
                del self._asked[who]
            else:
                self._asked[who] = cluster
            self._start()
            self._lock.notify_all()

    def endpoints(self, who: str) -> EndpointSet | None:
        """See `Names`."""
        with self._lock:
            cluster = self._asked.get(who)
            if cluster is None or cluster.named is None:
                return None
            answers: dict[Question, tuple[str, ...]] = {}
            now = self._clock()
            for question in cluster.named.questions:
                name = self._names[question]
                if name.answer is None and now < name.late:
                    return None
                answers[question] = name.last if cluster.named.logical else name.answer or ()
            return cluster.named.resolved(answers)

    def start(self) -> None:
        """Keeps the names up from now on."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._thread is None and self._names and not self._closed:
            self._thread = threading.Thread(target=self._run, name="meshlib-dns", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed or not self._names:
                    self._thread = None
                    return
                late, seconds = self._turn(self._clock())
                if not late:
                    self._lock.wait(seconds)
                    continue
            self._told(late)

    def _turn(self, now: float) -> tuple[set[str], float | None]:
        """Starts what is due. Gives the clusters whose patience is over, and the seconds to the next turn."""
        late: set[str] = set()
        nearest = math.inf
        for name in self._names.values():
            if name.answer is None and name.late <= now:
                name.answer, name.late = (), math.inf
                late.update(name.users)
                log.warning(
                    "nobody says which addresses %s has; it has no endpoint until then", name.question[0]
                )
            if name.answer is None:
                nearest = min(nearest, name.late)
            if name.running:
                continue
            if name.due > now:
                nearest = min(nearest, name.due)
            elif self._running < MOST:
                self._begin(name, now)
        return late, None if nearest == math.inf else nearest - now

    def _begin(self, name: _Name, now: float) -> None:
        self._running += 1
        name.running = True
        try:
            threading.Thread(target=self._look, args=(name,), name="meshlib-dns-name", daemon=True).start()
        except RuntimeError:  # the process ends, or has no thread to spare
            self._running -= 1
            name.running, name.due = False, now + 1.0

    def _look(self, name: _Name) -> None:
        found: tuple[str, ...] | None = None
        said = ""
        try:
            found = self._look_up(*name.question)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread that keeps the time must know
            said = str(error)
        with self._lock:
            self._running -= 1
            name.running = False
            before, now = name.answer, self._clock()
            if said and said != name.said:
                log.warning("%s can't be looked up: %s", name.question[0], said)
            name.said = said
            if found is not None:
                name.answer, name.late = found, math.inf
                name.last = found or name.last
            asked = [one.named for one in name.users.values() if one.named is not None]
            seconds = min((one.refresh if found is not None else one.retry for one in asked), default=0.0)
            name.due = now + max(seconds, LEAST_SECONDS)
            told = set(name.users) if found is not None and found != before else set()
            self._lock.notify_all()
        self._told(told)

    def _told(self, clusters: set[str]) -> None:
        if clusters and not self._closed:
            try:
                self._tell(clusters)
            except Exception:
                log.exception("new addresses could not be taken")

    def close(self) -> None:
        """Ends; what is being looked up is forgotten."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._lock.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """What is known stays; the names are looked up anew from the next `start` on."""
        self._lock = threading.Condition()
        self._thread, self._running = None, 0
        now = self._clock()
        for name in self._names.values():
            name.running, name.due = False, now


def _questions(cluster: Cluster | None) -> frozenset[Question]:
    return cluster.named.questions if cluster is not None and cluster.named is not None else frozenset()
