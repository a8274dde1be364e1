"""TLS contexts from policies and the workload's own certificate, and the checks after a handshake.

Rules:

- A context is made once for a policy and a certificate; a new certificate makes new ones. Connections
  that stand keep theirs.
- Files that a policy names are looked at when a connection is made, at most once a second; changed ones make
  a new context. If they can't be used, the last good one stays, with a warning.
- OpenSSL checks the chain to the roots. What it leaves open is checked after the handshake, before a
  byte of a request leaves: that the certificate is a workload's, and whose (`ClientTls.sans`).
- A connection's keys and certificates are those of its one handshake: none is renegotiated.
- Keys are handed to OpenSSL without leaving a file behind.
"""

import contextlib
import logging
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls, Trust
from meshlib.values import dataclass

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at a policy's files."""
_VERSIONS = {"TLSv1_2": ssl.TLSVersion.TLSv1_2, "TLSv1_3": ssl.TLSVersion.TLSv1_3}
_MOST_CONTEXTS = 256
_MOST_VOUCHED = 256
_VOUCHED_S = 60.0
"""Seconds for which a chain that was good counts as good, while the roots are the same."""
_NAMED = ("URI", "DNS", "IP Address")


@dataclass(frozen=True, slots=True)
class Held:
    """A workload's certificate and what it trusts, at one moment."""

    chain_pem: str
    """The leaf first, then intermediates; no root."""
    key_pem: bytes = field(repr=False)
    roots_pem: str = field(repr=False)
    """All roots that are trusted now."""
    principal: str = ""
    """`spiffe://…`."""
    not_before: float = 0.0
    not_after: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class _Filed:
    """A context made from a policy's files, and what is known of them."""

    context: ssl.SSLContext
    held: Held | None
    stamps: "Stamps"
    looked: float
    failed: "Stamps | None" = None
    """Of what could not be used since."""


Stamps = tuple[tuple[int, int, int] | None, ...]
"""Of each file what changes when it does; None: it is not there."""


class NotTrusted(OSError):
    """The peer's certificate is good, but not of one that was asked for."""


class BadFile(OSError):
    """A file that a policy names can't be used; says which, by Istio's field and its path."""


@dataclass(frozen=True, slots=True)
class _Vouched:
    """A chain that was good."""

    principal: str
    held: Held | None
    """By whose roots."""
    since: float
    until: float


class Contexts:
    """The contexts of one workload. Thread-safe: of a context that two make at once both get the same."""

    def __init__(
        self,
        held: Callable[[], Held | None],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held` gives the certificate in force; `wall` is in seconds since 1970."""
        self._held = held
        self._wall = wall
        self._clock = clock
        self._filed: dict[ClientTls, _Filed] = {}
        self._made: dict[tuple[ClientTls | ServerTls, Held | None], ssl.SSLContext] = {}
        self._vouched: dict[tuple[tuple[str, ...], str], _Vouched] = {}

    def client(self, policy: ClientTls) -> ssl.SSLContext:
        """The context for a connection by that policy. OSError: a file or certificate can't be used."""
        held = self._held()
        if _files(policy):
            return self._of_files(policy, held)
        return self._kept(policy, held, lambda: _client(policy, held))

    def server(self, policy: ServerTls) -> ssl.SSLContext:
        """The context for a server's port. OSError: there is no certificate."""
        held = self._held()
        return self._kept(policy, held, lambda: _server(policy, held))

    def check(self, policy: ClientTls, connection: "ssl.SSLSocket | ssl.SSLObject") -> str:
        """The peer's URI name, after the handshake; empty if it has none. NotTrusted: it must not be used."""
        if policy.trust is Trust.NOBODY:
            return ""
        names = _names(connection)
        principal = next((name for kind, name in names if kind == "URI"), "")
        if policy.trust is Trust.MESH:
            principal = self._checked(connection, (), server=True)
        if policy.sans and not any(
            _matches(how, wanted, name) for how, wanted in policy.sans for _, name in names
        ):
            shown = ", ".join(name for _, name in names) or "no name"
            wanted = ", ".join(f"{how.value} {name}" for how, name in policy.sans)
            raise NotTrusted(f"its certificate is for {shown}; allowed is {wanted}")
        return principal

    def shown(self, policy: ClientTls) -> tuple[bytes, bytes] | None:
        """The chain and the key, both PEM, that a client shows by that policy; None: none. OSError: it has
        none to show. For libraries that bring a TLS of their own.
        """
        if policy.mesh_identity:
            held = _own(self._held())
            return held.chain_pem.encode(), held.key_pem
        if not policy.certificate_file:
            return None
        chain = Path(policy.certificate_file).read_bytes()
        return chain, Path(policy.key_file).read_bytes() if policy.key_file else chain

    def caller(self, policy: ServerTls, connection: "ssl.SSLSocket | ssl.SSLObject") -> str:
        """The caller's `spiffe://…`, after the handshake. NotTrusted: it must not be served."""
        return self._checked(connection, policy.trust_domains, server=False)

    def vouched(self, policy: ServerTls, chain_pem: str) -> str:
        """The `spiffe://…` of a chain that somebody else's handshake took; empty: it is not to be trusted.

        Asked for each request of a connection; looked at once in `_VOUCHED_S` and after each change of trust.
        """
        held, now, key = self._held(), self._wall(), (policy.trust_domains, chain_pem)
        found = self._vouched.get(key)
        if found is None or found.held is not held or not found.since <= now < found.until:
            found = _vouch(policy, chain_pem, held, now)
            if found is None:
                return ""
            kept = self._vouched if len(self._vouched) < _MOST_VOUCHED else {}
            self._vouched = {**kept, key: found}
        return found.principal

    def _checked(
        self, connection: "ssl.SSLSocket | ssl.SSLObject", domains: tuple[str, ...], server: bool
    ) -> str:
        from meshlib.identity.chain import BadCertificate, Purpose, check_peer  # 40 ms, if there is a peer

        purpose = Purpose.SERVER if server else Purpose.CLIENT
        shown = connection.getpeercert(binary_form=True)
        if shown is None:
            raise NotTrusted("it shows no certificate")
        try:
            return str(check_peer([shown], trust_domains=domains, now=self._wall(), purpose=purpose))
        except BadCertificate as error:
            raise NotTrusted(f"its certificate is refused: {error}") from None

    def _of_files(self, policy: ClientTls, held: Held | None) -> ssl.SSLContext:
        now, last = self._clock(), self._filed.get(policy)
        if last is not None and last.held is held and now < last.looked + LOOK_SECONDS:
            return last.context
        stamps = _stamps(policy)  # before they are read, so that no later change is missed
        if last is not None and last.held is held and last.stamps == stamps and last.failed is None:
            self._filed[policy] = replace(last, looked=now)
            return last.context
        try:
            made = _Filed(_client(policy, held), held, stamps, now)
        except OSError as error:
            if last is None:
                raise
            if last.failed != stamps:
                log.warning("what was read before stays: %s", words(error))
            made = replace(last, looked=now, held=held, failed=stamps)
        if len(self._filed) >= _MOST_CONTEXTS:
            self._filed = {}
        self._filed[policy] = made
        return made.context

    def _kept(
        self, policy: ClientTls | ServerTls, held: Held | None, make: Callable[[], ssl.SSLContext]
    ) -> ssl.SSLContext:
        found = self._made.get((policy, held))
        if found is None:
            found, kept = make(), self._made
            # Those of replaced certificates go; too many go too, whatever a configuration piles up.
            for key in list(kept):
                if key[1] is not held or len(kept) >= _MOST_CONTEXTS:
                    kept.pop(key, None)
            found = kept.setdefault((policy, held), found)
        return found


def _vouch(policy: ServerTls, chain_pem: str, held: Held | None, now: float) -> _Vouched | None:
    from meshlib.identity.chain import BadCertificate, Purpose, check_peer, verify_chain
    from meshlib.identity.pem import load_bundle, to_der

    try:
        shown = to_der(chain_pem)
        who = check_peer(shown, trust_domains=policy.trust_domains, now=now, purpose=Purpose.CLIENT)
        verify_chain(shown, _own(held).roots_pem, now, purpose=Purpose.CLIENT)
        ends = min(one.not_valid_after_utc.timestamp() for one in load_bundle(chain_pem))
    except (BadCertificate, ValueError, OSError):
        return None
    return _Vouched(str(who), held, now, min(now + _VOUCHED_S, ends))


def words(error: OSError) -> str:
    """What went wrong in a handshake, without OpenSSL's punctuation."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        said = error.strerror or str(error)
        return said.rpartition("] ")[2].partition(" (_ssl.c")[0].lower()
    return error.strerror or str(error)


def _files(policy: ClientTls) -> list[str]:
    ca_file = policy.ca_file if policy.trust is Trust.FILE else ""
    shown = (policy.certificate_file, policy.key_file) if not policy.mesh_identity else ()
    return [one for one in (ca_file, policy.crl_file, *shown) if one]


def _stamps(policy: ClientTls) -> Stamps:
    found: list[tuple[int, int, int] | None] = []
    for one in _files(policy):
        try:
            about = os.stat(one)  # noqa: PTH116 - at each look
        except OSError:
            found.append(None)
        else:
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(found)


def _client(policy: ClientTls, held: Held | None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.minimum_version = _VERSIONS[policy.min_version]
    made.options |= ssl.OP_NO_RENEGOTIATION
    if policy.alpn:
        made.set_alpn_protocols(list(policy.alpn))
    match policy.trust:
        case Trust.NOBODY:
            made.verify_mode = ssl.CERT_NONE
        case Trust.SYSTEM:
            made.load_default_certs(ssl.Purpose.SERVER_AUTH)
        case Trust.FILE:
            with _named(f"caCertificates {policy.ca_file}"):
                made.load_verify_locations(cafile=policy.ca_file)
        case Trust.MESH:
            made.load_verify_locations(cadata=_own(held).roots_pem)
    if policy.trust is not Trust.NOBODY:
        made.check_hostname = policy.verify_host
        if policy.crl_file:
            made.load_verify_locations(cafile=policy.crl_file)
            made.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if policy.mesh_identity:
        _show(made, _own(held))
    elif policy.certificate_file:
        _check_readable("clientCertificate", policy.certificate_file)
        _check_readable("privateKey", policy.key_file)
        with _named(f"clientCertificate {policy.certificate_file} with privateKey {policy.key_file}"):
            made.load_cert_chain(policy.certificate_file, policy.key_file or None)
    return made


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """BadFile: it could not be used, whatever OpenSSL says."""
    try:
        yield
    except OSError as error:
        raise BadFile(f"{what} can't be used: {words(error)}") from None


def _check_readable(field: str, path: str) -> None:
    """OpenSSL does not say which of two files it could not read."""
    if path:
        with _named(f"{field} {path}"), Path(path).open("rb"):
            pass


def _server(policy: ServerTls, held: Held | None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = _VERSIONS[policy.min_version]
    made.options |= ssl.OP_NO_RENEGOTIATION
    if policy.mode is not InboundMode.DISABLE:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=_own(held).roots_pem)
    made.set_alpn_protocols(list(policy.alpn))
    made.sni_callback = _note_name
    _show(made, _own(held))
    return made


def control_context(held: Held | None, roots_pem: str) -> ssl.SSLContext:
    """The context for the control service, which is trusted by `roots_pem`; its name is checked."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_verify_locations(cadata=roots_pem)
    made.set_alpn_protocols(["h2"])
    if held is not None:
        _show(made, held)
    return made


def stranger_context() -> ssl.SSLContext:
    """A context that trusts nobody and checks nothing: to ask for what is then checked by its fingerprint."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["h2"])
    return made


def _note_name(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
    """Python does not tell a server which name was asked for, but here."""
    connection.meshlib_asked_name = name or ""


def asked_name(connection: "ssl.SSLSocket | ssl.SSLObject | None") -> str:
    """The server name (SNI) that the client of a server's connection asked for; empty: none."""
    return str(getattr(connection, "meshlib_asked_name", ""))


def _own(held: Held | None) -> Held:
    if held is None:
        raise OSError("this process has no certificate of the mesh")
    return held


def _show(context: ssl.SSLContext, held: Held) -> None:
    with _as_file(held.key_pem + b"\n" + held.chain_pem.encode()) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """OpenSSL reads certificates and keys from files only: one in memory, or one that is gone at once."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("meshlib", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, name = tempfile.mkstemp()  # 0600
    try:
        os.write(descriptor, data)
        os.close(descriptor)
        yield name
    finally:
        Path(name).unlink()


def _names(connection: "ssl.SSLSocket | ssl.SSLObject") -> list[tuple[str, str]]:
    shown: Any = connection.getpeercert() or {}
    return [(str(kind), str(name)) for kind, name in shown.get("subjectAltName", ()) if kind in _NAMED]


def _matches(how: SanMatch, wanted: str, name: str) -> bool:
    match how:
        case SanMatch.EXACT:
            return name == wanted
        case SanMatch.PREFIX:
            return name.startswith(wanted)
        case SanMatch.SUFFIX:
            return name.endswith(wanted)
        case SanMatch.CONTAINS:
            return wanted in name
