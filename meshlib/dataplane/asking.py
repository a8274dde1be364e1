"""How a workload asks the control service for a certificate: by what it trusts it, by what it shows itself.

Rules:

- Nothing is said, and no token shown, to a control service that no known root vouches for.
- Roots that were learned are newer than a fingerprint: a root that was given up since is not trusted again
  because a setting names it. A file of roots is read anew when those last heard of do not do.
- The certificate in force proves who this is; the token, if that is not taken or has ended.
- What can't be mended here says what to do, and that nobody will do it by itself (`refused`).
"""

import ssl
from collections.abc import Callable, Iterator

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane import fork
from meshlib.dataplane.certfile import CertFile
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import Untrusted
from meshlib.dataplane.tls import Held, control_context, stranger_context
from meshlib.identity.pem import fingerprint, split_pem, to_der
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER, TRUST_ROOTS

PATIENCE = 10.0
"""Seconds for one call of the control service."""
_MAY_BE_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE")
"""Statuses of a call by certificate after which a token may still do."""
_NEEDED = "MESHLIB_TOKEN or MESHLIB_TOKEN_FILE is needed (`meshlib ca token` makes one)"


class Asking:
    """One workload's. One thread at a time."""

    def __init__(
        self, settings: Bootstrap, file: CertFile, call: Callable[..., bytes], wall: Callable[[], float]
    ) -> None:
        """`call`: as `call_once`; `wall` in seconds since 1970."""
        self._settings, self._file, self._call, self._wall = settings, file, call, wall
        self._pinned = ""
        """The root that the fingerprint vouched for, before there is a certificate."""
        self.refused: Held | None = None
        """A certificate that is of no use: the control service does not take it, though it answers others,
        or is not to be trusted by its roots; and nothing else proved who this is.
        """

    def certificate(self, request: bytes, held: Held | None) -> tuple[bytes, str]:
        """What is answered to an IstioCertificateRequest, and the roots that are trusted now.

        `held`: the certificate in force. CallEnded: why there is none, and what to do.
        """
        for roots in self._roots(held):
            try:
                answer, newest = self._create(request, held, roots), self._newest_roots(roots)
            except Untrusted as error:
                last = error
            else:
                self.refused = None
                return answer, newest
        self._pinned = ""  # another root may be in its place, and be vouched for
        self.refused = held
        raise Untrusted(last.code, f"{last.details}; {self._other_roots()}")

    def roots(self, held: Held) -> str:
        """All roots that are trusted now. CallEnded: they can't be had."""
        return self._newest_roots(held.roots_pem)

    def _create(self, request: bytes, held: Held | None, roots: str) -> bytes:
        """Proves who this is by the certificate in force, else by a token."""
        refused: CallEnded | None = None
        if held is not None and self._wall() < held.not_after:
            try:
                return self._ask(pb.CREATE_CERTIFICATE, request, calm_context(held, roots))
            except Untrusted:
                raise
            except CallEnded as error:
                # A refusal in the handshake can look like a lost connection.
                if error.code not in _MAY_BE_REFUSED:
                    raise
                refused = error
        token = self._token()
        if not token:
            if refused is not None:
                self._ask_roots(calm_context(None, roots))  # which raises, if nobody is answered now
                self.refused = held
                raise CallEnded(
                    "UNAUTHENTICATED",
                    f"it does not take the certificate ({refused}), and there is no token: {_NEEDED}, and a "
                    "restart if it is in the environment",
                )
            raise CallEnded(
                "UNAUTHENTICATED",
                f"there is nothing that proves who this is: {_NEEDED}",
            )
        bearer = [("authorization", f"Bearer {token}")]
        try:
            return self._ask(pb.CREATE_CERTIFICATE, request, calm_context(None, roots), bearer)
        except CallEnded as error:
            if refused is None or error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise
            self.refused = held
            said = f"by token: {error.details}; by certificate: {refused}; a token that counts is needed"
            raise CallEnded(error.code, said) from error

    def _ask(
        self,
        path: str,
        request: bytes,
        context: ssl.SSLContext,
        metadata: list[tuple[str, str]] | None = None,
    ) -> bytes:
        return self._call(
            self._settings.control,
            path,
            request,
            context=context,
            server_name=CONTROL_SERVER,
            metadata=metadata or [],
            timeout=PATIENCE,
        )

    def _token(self) -> str:
        path = self._settings.token_file
        if path is None:
            return self._settings.token
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise CallEnded("UNAUTHENTICATED", f"the token file {path} can't be read: {error}") from None
        return token

    # Roots

    def _roots(self, held: Held | None) -> Iterator[str]:
        """The roots by which the control service may be trusted, the newest word first."""
        settings = self._settings
        known = held.roots_pem if held is not None else self._file.roots()
        if known:
            yield known
        if settings.ca_file is not None:
            said = settings.ca_file.read_text(encoding="ascii")
            if not known or set(split_pem(said)) - set(split_pem(known)):
                yield said
        elif not known:
            yield self._pin()

    def _other_roots(self) -> str:
        """What to do about a control service that is not trusted."""
        if self._settings.ca_file is not None:
            return f"if the mesh has other roots now, {self._settings.ca_file} needs them (its roots.pem)"
        return (
            "if the mesh has another root now, set MESHLIB_CA_FINGERPRINT as `meshlib control` prints it now"
        )

    def _pin(self) -> str:
        """The root that the fingerprint vouches for."""
        settings = self._settings
        if self._pinned:
            return self._pinned
        if not settings.ca_fingerprint:
            raise CallEnded(
                "UNAVAILABLE",
                "it is not known which certificate authority to trust: set MESHLIB_CA_FINGERPRINT as "
                "`meshlib control` prints it, or MESHLIB_CA_FILE; or MESHLIB_ALLOW_PLAINTEXT=true, if it "
                "serves without TLS",
            )
        with fork.calm:
            stranger = stranger_context()
        found = self._ask_roots(stranger)
        vouched = [one for one in split_pem(found) if fingerprint(to_der(one)[0]) == settings.ca_fingerprint]
        if not vouched:
            raise CallEnded(
                "UNAVAILABLE",
                f"its certificate authority is another one than {settings.ca_fingerprint}: it is not "
                f"trusted; {self._other_roots()}",
            )
        self._pinned = vouched[0]
        return self._pinned

    def _newest_roots(self, roots: str) -> str:
        """All roots that are trusted now, by word of a control service that is trusted already."""
        return self._ask_roots(calm_context(None, roots)) or roots

    def _ask_roots(self, context: ssl.SSLContext) -> str:
        reply = pb.Struct.FromString(self._ask(TRUST_ROOTS, b"", context))
        return str(reply.fields["roots"].string_value) if "roots" in reply.fields else ""


def calm_context(held: Held | None, roots: str) -> ssl.SSLContext:
    """`control_context`, while no fork comes between."""
    with fork.calm:
        return control_context(held, roots)
