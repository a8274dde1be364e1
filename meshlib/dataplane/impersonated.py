"""The certificates of a node's workloads: the node asks for them (`ImpersonatedIdentity`), by its own.

Rules:

- There is one for each account, however many workloads run as it, for as long as one of them is there; then
  it is forgotten, with its key. Their number is bounded.
- They are kept on disk as the node's own is (`certfile.py`), so that a node that starts anew has them while
  the control service is down. One is taken from there only if the node's own roots vouch for it.
- Each is renewed at half its life; when the node's own roots vouch for it no more, within a second; when the
  node's own certificate has another issuer, within seconds. The roots are the node's own.
- What can't be had is asked for again, with growing pauses; what is held serves to its end.
- One daemon thread asks, one at a time.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from google.protobuf.message import DecodeError

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.asking import PATIENCE, calm_context
from meshlib.dataplane.certfile import CertFile, sweep
from meshlib.dataplane.certs import SPREAD_REFUSED, SPREAD_ROOTS, checked, vouched
from meshlib.dataplane.grpc_unary import call_once
from meshlib.dataplane.tls import Held
from meshlib.errors import ConfigError, ControlUnavailable, MeshError
from meshlib.identity import renewal
from meshlib.identity.chain import BadCertificate
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import join_pem, split_pem
from meshlib.identity.spiffe import SpiffeId
from meshlib.values import dataclass
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER

log = logging.getLogger(__name__)

MOST = 1000
"""Accounts of one node."""
LOOK_SECONDS = 1.0
"""Between two looks at the node's own certificate."""
FAREWELL = 1.0
_LONGEST, _ENDLESS = 2 * renewal.LONGEST_PAUSE_S, float("inf")
_EXPECTED = (MeshError, DecodeError, ValueError, OSError)
_UNFIT = (OSError, ValueError, KeyError, TypeError, BadCertificate)
FOLDER = "workloads"
"""Below the node's state folder."""

Account = tuple[str, str]
"""Namespace and service account."""


class Own(Protocol):
    """The node's own certificate."""

    @property
    def held(self) -> Held | None:
        """The one in force."""

    def ensure(self) -> Held:
        """One that is good now; may wait. MeshError: none can be had."""


@dataclass(eq=False, slots=True)
class _Entry:
    users: int = 0
    held: Held | None = None
    jitter: float = 0.0
    failures: int = 0
    due: float = _ENDLESS
    """When to ask, whatever its age; in seconds since 1970."""
    failure: str = ""
    level: int = 0
    """How loudly that was told."""


class Impersonated:
    """Those of one node. Thread-safe; not for a process that forks."""

    def __init__(
        self,
        settings: Bootstrap,
        own: Own,
        *,
        call: Callable[..., bytes] = call_once,
        wall: Callable[[], float] = time.time,
        dice: random.Random | None = None,
    ) -> None:
        """Starts nothing; `settings` are the node's. What is kept of certificates that have ended goes."""
        self._settings, self._own, self._call, self._wall = settings, own, call, wall
        self._dice = dice or random.SystemRandom()
        self._lock = threading.Condition()
        """Notified after each try."""
        self._entries: dict[Account, _Entry] = {}
        self._seen: Held | None = None
        """The node's own certificate at the last look."""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._folder = None if settings.state_dir is None else settings.state_dir / FOLDER
        if self._folder is not None:
            sweep(self._folder, wall())

    def __repr__(self) -> str:
        with self._lock:
            held = sum(entry.held is not None for entry in self._entries.values())
            return f"<Impersonated {held} of {len(self._entries)} accounts>"

    def need(self, account: Account) -> Held:
        """A workload of that account is there, until `leave`; waits for a certificate.

        ControlUnavailable: none can be had now, and why. ConfigError: there are too many accounts.
        """
        entry = self._begin(account)
        with self._lock:
            tries = entry.failures
            self._lock.wait_for(lambda: entry.held or entry.failures > tries or self._stop.is_set(), PATIENCE)
            if entry.held is not None:
                return entry.held
            why = entry.failure or "it was not asked for in time"
        self.leave(account, stays=True)
        raise ControlUnavailable(f"no certificate for {'/'.join(account)}: {why}")

    def _begin(self, account: Account) -> _Entry:
        with self._lock:
            entry = self._entries.get(account)
            if entry is None:
                if len(self._entries) >= MOST:
                    raise ConfigError(f"there are workloads of {MOST} accounts; no further one is taken")
                entry = self._entries[account] = self._entry(account)
            entry.users += 1
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="meshlib-impersonated", daemon=True)
                self._thread.start()
            if entry.held is None:
                entry.due = self._wall()
        self._wake.set()
        return entry

    def _entry(self, account: Account) -> _Entry:
        """A new one, with what was kept, if it is good."""
        own, now = self._own.held, self._wall()
        held = None if own is None else self._kept(account, own, now)
        if own is None or held is None:
            return _Entry(due=now, jitter=self._throw())
        other = _above(held) != _above(own)
        due = now + self._dice.random() * SPREAD_ROOTS if other else _ENDLESS
        return _Entry(held=held, due=due, jitter=self._throw())

    def _kept(self, account: Account, own: Held, now: float) -> Held | None:
        file = self._file(account)
        try:
            if (said := file.read()) is None:
                return None
            with fork.calm:
                found = checked(*said[:2], own.roots_pem, now)
        except FileNotFoundError:
            return None
        except _UNFIT as error:
            log.info("the certificate in %s is not used: %s", file.path, error)
            return None
        whose = SpiffeId.of(SpiffeId.parse(own.principal).trust_domain, *account)
        return found if found.principal == str(whose) and now < found.not_after else None

    def _file(self, account: Account) -> CertFile:
        namespace, name = account
        of = replace(self._settings, namespace=namespace, service_account=name, state_dir=self._folder)
        return CertFile(of)

    def leave(self, account: Account, *, stays: bool = False) -> None:
        """A workload of that account is gone. With the last one the certificate is forgotten; with `stays`
        what is kept of it stays on disk, for it comes back.
        """
        with self._lock:
            entry = self._entries[account]
            entry.users -= 1
            if not entry.users:
                del self._entries[account]
                if not stays:
                    self._file(account).forget()

    def held(self, account: Account) -> Held | None:
        """The certificate in force; None: there is none, or no such workload."""
        with self._lock:
            entry = self._entries.get(account)
            return None if entry is None else entry.held

    def failures(self) -> dict[Account, str]:
        """Why one could not be got or renewed, of those that could not."""
        with self._lock:
            return {who: entry.failure for who, entry in self._entries.items() if entry.failure}

    def close(self) -> None:
        """Nothing is asked for any more."""
        with self._lock:
            self._stop.set()
            self._lock.notify_all()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(FAREWELL)

    # Renewal, on a thread of its own

    def _run(self) -> None:
        for seconds in self.kept_fresh():
            self._wake.wait(seconds)
            self._wake.clear()
            if self._stop.is_set():
                return

    def kept_fresh(self) -> Iterator[float]:
        """Asks whenever one is due, without end; yields how many seconds to wait before the next look."""
        while True:
            self._follow()
            now = self._wall()
            with self._lock:
                waits = {who: self._wait(entry, now) for who, entry in self._entries.items()}
                who = min(waits, key=lambda one: waits[one], default=None)
                entry = None if who is None else self._entries[who]
            if who is None or entry is None or waits[who] > 0:
                yield min((LOOK_SECONDS, *waits.values()))
                continue
            self._try(who, entry)
            yield 0.0

    def _wait(self, entry: _Entry, now: float) -> float:
        """Seconds until it is to be asked for."""
        left = entry.due - now
        if _LONGEST < left < _ENDLESS:  # the clock was set back
            left = 0.0
        if not entry.failures and entry.held is not None:
            left = min(left, renewal.wait(_term(entry.held), now, entry.jitter))
        return max(0.0, left)

    def _follow(self) -> None:
        """What the node's own certificate says of the others."""
        own = self._own.held
        if own is None or own is self._seen:
            return
        self._seen = own
        now, above = self._wall(), _above(own)
        with self._lock:
            entries = list(self._entries.values())
        for entry in entries:  # which this thread alone changes
            if entry.held is None:
                continue
            entry.held = replace(entry.held, roots_pem=own.roots_pem)
            if not vouched(entry.held, own.roots_pem, now):
                entry.due = min(entry.due, now + self._dice.random() * SPREAD_REFUSED)
            elif _above(entry.held) != above:
                entry.due = min(entry.due, now + self._dice.random() * SPREAD_ROOTS)

    def _try(self, who: Account, entry: _Entry) -> None:
        try:
            made = self._asked(who)
        except _EXPECTED as error:
            self._failed(who, entry, str(error))
            return
        except Exception as error:
            # Nobody else would hear of it, and without renewal the workload is lost.
            log.exception("the certificate of %s/%s was not got; it is tried again", *who)
            self._failed(who, entry, repr(error))
            return
        with self._lock:
            had = entry.held is not None
            entry.held, entry.failures, entry.due, entry.jitter = made, 0, _ENDLESS, self._throw()
            told, entry.failure, entry.level = entry.failure, "", 0
            if self._entries.get(who) is entry:
                self._file(who).write(made)
            self._lock.notify_all()
        if told and had:
            log.warning("there is a certificate again: %s", made.principal)

    def _failed(self, who: Account, entry: _Entry, why: str) -> None:
        now, level = self._wall(), logging.WARNING
        with self._lock:
            entry.failures += 1
            term = renewal.Term(now, now)
            if entry.held is not None:
                term = _term(entry.held)
                ends = renewal.health(term, now) in (renewal.Health.EXPIRING, renewal.Health.EXPIRED)
                level = logging.ERROR if ends else level
            entry.due = now + renewal.pause(term, now, entry.failures, self._throw())
            told, entry.failure, entry.level = (entry.failure, entry.level), why, level
            self._lock.notify_all()
        # Without any, whoever waits for the first one is told, and says so.
        if entry.held is not None and told != (why, level):
            log.log(level, "no new certificate for %s/%s: %s", *who, why)

    def _asked(self, who: Account) -> Held:
        own = self._own.ensure()
        identity = SpiffeId.of(SpiffeId.parse(own.principal).trust_domain, *who)
        with fork.calm:
            key = make_key()
            request = pb.IstioCertificateRequest(csr=make_csr(key, None).decode())
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        answer = self._call(
            self._settings.control,
            pb.CREATE_CERTIFICATE,
            request.SerializeToString(),
            context=calm_context(own, own.roots_pem),
            server_name=CONTROL_SERVER,
            metadata=[],
            timeout=PATIENCE,
        )
        chain = list(pb.IstioCertificateResponse.FromString(answer).cert_chain)
        with fork.calm:
            made = checked(join_pem(chain[:-1]), key, own.roots_pem, self._wall())
        if made.principal != str(identity):
            raise ValueError(f"the certificate is of {made.principal}, not of {identity}")
        return made

    def _throw(self) -> float:
        return 2 * self._dice.random() - 1


def _above(held: Held) -> tuple[str, ...]:
    """The chain above the leaf."""
    return split_pem(held.chain_pem)[1:]


def _term(held: Held) -> renewal.Term:
    return renewal.Term(held.not_before, held.not_after)
