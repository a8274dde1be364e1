"""The workload's own certificate: got when it is first needed, renewed at half its life, kept on disk.

    roots      those last heard of; at first a file, or what control names and a fingerprint vouches for
    first      a token proves who this is (`istio.v1.auth`, CreateCertificate)
    later      the certificate in force does; the token again, if that is not taken any more
    renewed    at half its life; at once when new roots come, when the roots do not vouch for it any more,
               and when the control service hangs up on who shows it, or is not trusted by the roots

Rules:

- One `Certs` for each identity and control service in a process, whoever uses it (`certs_of`).
- Nothing starts before the first need; then a daemon thread renews. A certificate that can't be
  renewed serves to its end, and says so louder the nearer that is.
- What is on disk is one file, 0600, replaced whole. It is used only if it is still good, for the same
  identity and the same fingerprint.
- A new root is learned from the control service, over a connection that the old one vouches for. Who has no
  stream of ours, on which it is told, asks for it every `ASK_SECONDS` (`watch_roots`).
- Renewals that something else than age asks for are spread over seconds, and rarer when they do not help.
- Streams to the control service begin anew with a new certificate: so it knows which one is in use, and none
  is cut off when the old one ends.
"""

import logging
import math
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.asking import Asking, calm_context
from meshlib.dataplane.certfile import CertFile
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_stream import KeptStream
from meshlib.dataplane.grpc_unary import Untrusted, call_once
from meshlib.dataplane.tls import Contexts, Held
from meshlib.errors import ControlUnavailable
from meshlib.identity import renewal
from meshlib.identity.chain import BadCertificate, Purpose, Reason, check_peer, verify_chain
from meshlib.identity.keys import load_key, make_csr, make_key, same_key
from meshlib.identity.pem import join_pem, split_pem, to_der
from meshlib.xds import pb

log = logging.getLogger(__name__)

FAREWELL = 1.0
"""Seconds that a close waits for a call that is under way."""
SHORTEST_WAIT = 0.05
"""Seconds between two looks at the least, whatever the clock on the wall does."""
SPREAD_REFUSED, SPREAD_ROOTS = 1.0, 5.0
"""Seconds over which a crowd renews that was refused, and one that hears of new roots."""
LOOK_AGAIN = 5.0
"""Seconds after which the roots are asked for once more, if that failed."""
ASK_SECONDS = 10.0
"""Seconds between two questions for the roots of who is not told of new ones."""
LONGEST_DOUBT = 300.0
"""Seconds that a certificate must have been in force to be doubted at once, after one was in vain."""
_known: dict[tuple[Any, ...], "Certs"] = {}


def certs_of(settings: Bootstrap) -> "Certs":
    """The certificates of that workload in this process."""
    who = (settings.control, settings.namespace, settings.service_account, settings.ca_fingerprint)
    key = (
        *who,
        settings.ca_file,
        settings.allow_plaintext,
        settings.token,
        settings.token_file,
        settings.state_dir,
    )
    found = _known.get(key)
    # No lock, for a fork to find held: of several threads one wins, and nothing starts before it is asked.
    return found or _known.setdefault(key, Certs(settings))


class Certs:
    """One identity's certificate. Thread-safe; survives forks."""

    def __init__(
        self,
        settings: Bootstrap,
        *,
        call: Callable[..., bytes] = call_once,
        wall: Callable[[], float] = time.time,
        dice: random.Random | None = None,
    ) -> None:
        """Starts nothing."""
        self._settings = settings
        self._file = CertFile(settings)
        self._asking = Asking(settings, self._file, call, wall)
        self._wall = wall
        self._dice = dice or random.SystemRandom()
        self._lock = threading.RLock()
        """Held while a certificate is got: one at a time."""
        self._swap = threading.Lock()
        self._users = 0
        self._streams: weakref.WeakSet[KeptStream] = weakref.WeakSet()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._due_at = math.inf
        """When to renew, whatever its age."""
        self._look_at = math.inf
        """When to ask for the roots."""
        self._watches = False
        self._doubted: Held | None = None
        self._doubts = 0
        """How many renewals in a row were asked for by doubt."""
        self.held: Held | None = None
        """The certificate in force."""
        self.failure = ""
        """Why there is none, or why it was not renewed; empty: all is well."""
        self.contexts = Contexts(lambda: self.held, wall)
        self._for_control: tuple[Held, ssl.SSLContext] | None = None
        fork.watch(self)

    def __repr__(self) -> str:
        held = self.held
        until = "" if held is None else f" until {time.strftime('%FT%TZ', time.gmtime(held.not_after))}"
        return f"<Certs {held.principal if held else 'none yet'}{until}>"

    @property
    def health(self) -> renewal.Health | None:
        """How the certificate in force is; None: there is none."""
        held = self.held
        if held is not None and held is self._asking.refused:
            return renewal.Health.REFUSED
        return None if held is None else renewal.health(_term(held), self._wall())

    @property
    def ends(self) -> float | None:
        """Until when the certificate in force is of use, in seconds since 1970; None: there is none.

        One that the control service does not take is of none from now on: who alarms by its end alarms then.
        """
        held = self.held
        if held is not None and held is self._asking.refused:
            return min(held.not_after, self._wall())
        return None if held is None else held.not_after

    def secure(self) -> ssl.SSLContext | None:
        """The TLS context for a connection to the control service; gets a certificate first, if need be.

        None: plain text was asked for. ControlUnavailable: no certificate can be had, and why.
        """
        if self._settings.allow_plaintext:
            return None
        held = self.ensure()
        last = self._for_control
        if last is None or last[0] is not held:
            last = self._for_control = (held, calm_context(held, held.roots_pem))
        return last[1]

    def ensure(self) -> Held:
        """A certificate that is good now: the one in force, the one on disk, or a new one.

        ControlUnavailable: none can be had. It may wait as long as a call of the control service.
        """
        held = self.held
        if held is not None:
            # Also of one that a fork inherited, or that was held when renewal ended.
            self._start()
            if self._wall() < held.not_after:
                return held
        with self._lock:
            held = self.held
            if held is None or self._wall() >= held.not_after:
                held = self._installed(self._saved() or self._renewed(), held)
            self._start()
            return held

    def trust(self, roots_pem: str) -> None:
        """The control service says which roots are trusted now. Waits for no network."""
        with self._swap:
            held = self.held
            if held is None:
                return
            said, known = set(split_pem(roots_pem)), set(split_pem(held.roots_pem))
            if said in (set(), known):
                return
            self._adopt(replace(held, roots_pem=roots_pem))
            if not vouched(held, roots_pem, self._wall()):
                self._hasten(self._dice.random() * SPREAD_REFUSED)
            elif said - known and not vouched(held, join_pem(said - known), self._wall()):
                self._hasten(self._dice.random() * SPREAD_ROOTS)

    def look(self) -> None:
        """The control service says that its roots may be others now: they are asked for, soon."""
        with self._swap:
            self._look_at = min(self._look_at, self._wall() + self._dice.random() * SPREAD_REFUSED)
            self._wake.set()

    def watch_roots(self) -> None:
        """Nobody will say that there are other roots: they are asked for again and again."""
        with self._swap:
            self._watches = True
            self._wake.set()

    def _looked(self) -> None:
        """Asks for the roots, if that is due."""
        held = self.held
        if held is None or self._wall() < self._look_at:
            return
        self._look_at = math.inf  # who says so meanwhile is heard
        try:
            roots = self._asking.roots(held)
        except CallEnded as error:
            log.info("the roots can't be asked for: %s; tried again in %g s", error, LOOK_AGAIN)
            self._look_at = self._wall() + LOOK_AGAIN
            if isinstance(error, Untrusted):
                self.doubt(str(error))
        else:
            self.trust(roots)

    def doubt(self, why: str) -> None:
        """The control service was reached and hung up, before a word, on who showed the certificate; or it is
        not trusted, for other roots may be in their place, which only a renewal finds.
        """
        with self._swap:
            held = self.held
            if held is None or held is self._doubted:
                return
            log.info("the certificate may be refused, a new one is asked for: %s", why)
            young = self._wall() - held.not_before < LONGEST_DOUBT
            self._doubts = self._doubts + 1 if young else 1
            self._doubted = held
            self._hasten(
                self._dice.random() * SPREAD_REFUSED + min(2.0 ** (self._doubts - 1) - 1, LONGEST_DOUBT)
            )

    def renew(self) -> Held:
        """A new certificate, now. ControlUnavailable: it can't be had; the one in force stays."""
        with self._lock:
            before, due = self.held, self._due_at
            made = self._installed(self._renewed(), before)
            with self._swap:
                if self._due_at == due:
                    self._due_at = math.inf
            return made

    def follow(self, stream: KeptStream) -> None:
        """It is secured by `secure`, and refreshed when there is a new certificate."""
        with self._swap:
            self._streams.add(stream)

    def use(self) -> None:
        """Somebody needs it from now on, until `leave`."""
        with self._swap:
            self._users += 1

    def leave(self) -> None:
        """Somebody needs it no more; with the last one renewal ends."""
        with self._swap:
            self._users -= 1
            last = self._users <= 0
        if last:
            self.close()

    def close(self) -> None:
        """Renewal ends; what is held stays, and a later need starts it again."""
        with self._swap:
            self._stop.set()
            self._wake.set()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(FAREWELL)

    # Getting one

    def _renewed(self) -> Held:
        held = self.held
        try:
            with fork.calm:
                key = make_key()
                request = pb.IstioCertificateRequest(csr=make_csr(key, None).decode())
            answer, newest = self._asking.certificate(request.SerializeToString(), held)
            # The last is the root, which a peer has or does not trust.
            chain = list(pb.IstioCertificateResponse.FromString(answer).cert_chain)
            with fork.calm:
                made = checked(join_pem(chain[:-1]), key, newest, self._wall())
        except CallEnded as error:
            raise self._failed(str(error)) from error
        except (BadCertificate, DecodeError, ValueError, OSError) as error:
            raise self._failed(f"what it gave can't be used: {error}") from error
        if self.failure:
            log.warning("this workload has a certificate again: %s", made.principal)
        self.failure = ""
        return made

    def _installed(self, made: Held, before: Held | None) -> Held:
        """In force now; the roots that came while `before` was replaced are newer than its own."""
        with self._swap:
            now = self.held
            if now is not None and before is not None and now.roots_pem != before.roots_pem:
                made = replace(made, roots_pem=now.roots_pem)
            self._adopt(made)
            streams = list(self._streams) if before is not None else []
        for stream in streams:
            stream.refresh()
        return made

    def _failed(self, why: str) -> ControlUnavailable:
        self.failure = why
        return ControlUnavailable(f"no certificate from the control service {self._settings.control}: {why}")

    def _adopt(self, held: Held) -> None:
        self.held = held
        self._file.write(held)

    # What is kept, and what is good

    def _saved(self) -> Held | None:
        """What is on disk, if it is good now."""
        if self._settings.allow_plaintext:
            return None
        try:
            said = self._file.read()
            found = None if said is None else checked(*said, self._wall())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, BadCertificate) as error:
            log.info("the certificate in %s is not used: %s", self._file.path, error)
            return None
        # What is shown to others has no grace.
        return found if found is not None and self._wall() < found.not_after else None

    # Renewal, on a thread of its own

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._swap:  # so that no fork comes between
            if self._thread is None:
                self._wake, self._stop = threading.Event(), threading.Event()
                thread = threading.Thread(target=self._run, name="meshlib-certs", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        wake, stop = self._wake, self._stop
        for seconds in self.kept_fresh():
            wake.wait(seconds)
            wake.clear()
            if stop.is_set():
                return

    def _hasten(self, seconds: float) -> None:
        """Renews in so many seconds, whatever its age. Under `_swap`."""
        self._due_at = min(self._due_at, self._wall() + seconds)
        self._wake.set()

    def _is_due(self, jitter: float) -> bool:
        now = self._wall()
        return self.held is not None and (
            now >= self._due_at or renewal.is_due(_term(self.held), now, jitter)
        )

    def kept_fresh(self) -> Iterator[float]:
        """Renews whenever that is due, without end; yields how many seconds to wait before the next look."""
        failures, jitter, told = 0, self._jitter(), renewal.Health.OK
        while True:
            yield self._pause(failures, jitter)
            self._looked()
            if not self._is_due(jitter):
                failures = 0
                continue
            try:
                self.renew()
                failures, jitter, told = 0, self._jitter(), renewal.Health.OK
            except ControlUnavailable as error:
                failures += 1
                told = self._alarm(told, error)
            except Exception as error:
                # Nobody else would hear of it, and without renewal the workload is lost.
                failures += 1
                log.exception("the certificate of %s was not renewed; it is tried again", self._whose)
                told = self._alarm(told, error)

    def _pause(self, failures: int, jitter: float) -> float:
        """Seconds until the next look."""
        assert self.held is not None  # noqa: S101 - the thread starts with one
        term, now = _term(self.held), self._wall()
        if self._watches:
            self._look_at = min(self._look_at, now + ASK_SECONDS)
        if failures:
            wait = renewal.pause(term, now, failures, self._jitter())
        else:
            wait = min(renewal.wait(term, now, jitter), self._due_at - now)
        return max(SHORTEST_WAIT, min(wait, self._look_at - now))

    @property
    def _whose(self) -> str:
        return "" if self.held is None else self.held.principal

    def _jitter(self) -> float:
        return 2 * self._dice.random() - 1

    def _alarm(self, told: renewal.Health, error: Exception) -> renewal.Health:
        """Says each stage once."""
        now = self.health
        if now is None or now is told:
            return told
        level = logging.WARNING if now is renewal.Health.LATE else logging.ERROR
        log.log(
            level,
            "the certificate of %s %s; a new one can't be had: %s",
            self._whose,
            now.value,
            error,
        )
        return now

    # Fork

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._swap.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._swap.release()

    def after_fork_in_child(self) -> None:
        """The certificate stays; the child renews for itself, from its first need on."""
        self._lock, self._swap = threading.RLock(), threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = None


def checked(chain: str, key: bytes, roots: str, now: float) -> Held:
    """A chain without its root, checked. BadCertificate, ValueError: it is not good."""
    shown = to_der(chain)
    identity = check_peer(shown, trust_domains=(), now=now, purpose=Purpose.SERVER)
    leaf = verify_chain(shown, roots, now, purpose=Purpose.CLIENT)[0]
    if not same_key(load_key(key).public_key(), leaf.public_key()):
        raise BadCertificate(Reason.MALFORMED, "it is not of the key that was made for it")
    term = renewal.Term.of(leaf)
    return Held(chain, key, roots, str(identity), term.begin, term.end)


def vouched(held: Held, roots: str, now: float) -> bool:
    """Whether the chain leads to one of these roots."""
    try:
        with fork.calm:
            verify_chain(to_der(held.chain_pem), roots, now, purpose=Purpose.CLIENT)
    except (BadCertificate, ValueError):
        return False
    return True


def _term(held: Held) -> renewal.Term:
    return renewal.Term(held.not_before, held.not_after)
