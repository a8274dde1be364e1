"""A control service that gives certificates, without a network: real authority, real handshakes, any time.

A handshake is made in memory, between the context that the caller gives and one of the authority's. OpenSSL
has no clock that could be set, so both are told to leave times alone; the times of certificates are checked
here, as the service does it.
"""

import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.control.ca.authority import Authority
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import Untrusted
from meshlib.identity.chain import BadCertificate, Purpose, check_peer
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER, TRUST_ROOTS

CART = SpiffeId("cluster.local", "shop", "cart")
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME."""


class Clock:
    """A clock on the wall that is set by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Asked:
    """One call: its path, and by what the caller proved who it is."""

    path: str
    proof: str


class SmallControl:
    """What `Certs` calls."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.authority = Authority.open(folder, trust_domain="cluster.local", now=clock.now)
        self.certificate: Any = None
        self.life = 3600
        self.who = CART
        """Whose certificates are asked for."""
        self.speaks_for: set[str] = set()
        """For whom it may ask besides."""
        self.down = ""
        """The status with which every call ends; empty: it is up."""
        self.takes_certificates = True
        self.takes_tokens = True
        self.asked: list[Asked] = []
        self.chain: list[str] | None = None
        """Given instead of what would be signed."""

    def __call__(
        self,
        address: str,
        path: str,
        request: bytes,
        *,
        context: ssl.SSLContext,
        server_name: str,
        metadata: Sequence[tuple[str, str]],
        timeout: float,
    ) -> bytes:
        assert (address, server_name, timeout) == ("control.example:15010", CONTROL_SERVER, 10.0)
        if self.down:
            raise CallEnded(self.down, "it is down")
        shown = self._shake_hands(context)
        self.authority.reload(self.clock.now)
        if path == TRUST_ROOTS:
            self.asked.append(Asked("roots", "certificate" if shown else "nothing"))
            reply = pb.Struct()
            reply.update({"roots": self.authority.roots_pem})
            return bytes(reply.SerializeToString())
        assert path == pb.CREATE_CERTIFICATE
        return self._create(request, shown, dict(metadata).get("authorization", ""))

    @property
    def proofs(self) -> list[str]:
        """By what each certificate was asked for."""
        return [one.proof for one in self.asked if one.path == "certificate"]

    def _create(self, request: bytes, shown: bytes | None, bearer: str) -> bytes:
        self.asked.append(Asked("certificate", bearer or ("certificate" if shown else "nothing")))
        if shown is not None and not bearer:
            try:
                check_peer([shown], trust_domains=(), now=self.clock.now, purpose=Purpose.CLIENT)
            except BadCertificate as error:
                raise CallEnded("UNAUTHENTICATED", str(error)) from None
            if not self.takes_certificates:
                raise CallEnded("UNAUTHENTICATED", "that certificate is not taken")
        elif bearer != "Bearer a-good-token" or not self.takes_tokens:
            raise CallEnded("UNAUTHENTICATED", "that token is not taken")
        asked = pb.IstioCertificateRequest.FromString(request)
        who = self.who
        if "ImpersonatedIdentity" in asked.metadata.fields:
            whom = asked.metadata["ImpersonatedIdentity"]
            self.asked[-1] = Asked(whom, self.asked[-1].proof)
            if whom not in self.speaks_for:
                raise CallEnded("PERMISSION_DENIED", f"the node may not speak for {whom}")
            who = SpiffeId.parse(whom)
        chain = self.chain or self.authority.sign(asked.csr, who, self.life, self.clock.now)
        return bytes(pb.IstioCertificateResponse(cert_chain=chain).SerializeToString())

    def _shake_hands(self, client: ssl.SSLContext) -> bytes | None:
        """The certificate that the client shows, as DER."""
        if client.verify_mode is not ssl.CERT_NONE:
            client.verify_flags = ssl.VerifyFlags(client.verify_flags | NO_CHECK_TIME)
        server = self._context()
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking = client.wrap_bio(to_client, to_server, server_hostname=CONTROL_SERVER)
        answering = server.wrap_bio(to_server, to_client, server_side=True)
        for end in (asking, answering, asking, answering):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                if end is asking:
                    raise Untrusted("UNAVAILABLE", f"it is not trusted: {error.verify_message}") from None
                raise CallEnded("UNAVAILABLE", "tlsv1 alert unknown ca") from None
        return answering.getpeercert(binary_form=True)

    def _context(self) -> ssl.SSLContext:
        self.certificate = self.authority.server_certificate([CONTROL_SERVER], self.clock.now)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.verify_mode = ssl.CERT_OPTIONAL
        made.verify_flags = ssl.VerifyFlags(made.verify_flags | NO_CHECK_TIME)
        made.load_verify_locations(cadata=self.authority.roots_pem)
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.certificate.key_pem + self.certificate.chain_pem.encode())
            file.flush()
            made.load_cert_chain(file.name)
        return made
