"""Secret with a certificate: what would be of no use to a Gateway is refused, so the last good one stays. One
that has ended is taken, as Envoy does, and told.

Nothing of what is in it stands in a problem. What reads keys is loaded with the first such secret.
"""

import time
from typing import TYPE_CHECKING

from meshlib.control.istio.secret import TLS_TYPE, Secret, credential
from meshlib.control.istio.validity.report import Report

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_PEM = b"-----BEGIN"


def secret(spec: Secret, to: Report) -> None:
    """The whole document."""
    is_tls = spec.type == TLS_TYPE
    try:
        found = credential(spec)
    except ValueError as error:
        if is_tls:
            to.error(str(error), "", "base64 in data, text in stringData")
        return
    if not is_tls and _PEM not in found.chain + found.roots:
        return  # somebody else's
    if is_tls or found.chain or found.key:
        _pair(found.chain, found.key, to)
    if found.roots and not _certificates(found.roots, "the CA", to):
        return
    if found.revoked:
        from cryptography.x509 import load_pem_x509_crl

        try:
            load_pem_x509_crl(found.revoked)
        except ValueError:
            to.error("the revocation list can't be read", "", "PEM")


def _pair(chain: bytes, key: bytes, to: Report) -> None:
    from meshlib.identity.keys import load_key, same_key

    certificates = _certificates(chain, "the certificate", to)
    try:
        loaded = load_key(key)
    except ValueError as error:
        to.error(f"the key can't be used: {error}", "", "an unencrypted PEM key of RSA or EC")
        return
    if certificates and not same_key(loaded.public_key(), certificates[0].public_key()):
        to.error("the key is not that of the certificate", "", "the key of the first certificate")


def _certificates(pem: bytes, what: str, to: Report) -> "tuple[Certificate, ...]":
    from meshlib.identity.pem import MAX_BUNDLE, load_bundle
    from meshlib.identity.renewal import out_of_force

    found: tuple[Certificate, ...] = ()
    if len(pem) <= MAX_BUNDLE:
        try:
            found = load_bundle(pem.decode("ascii", "replace"))
        except ValueError:
            found = ()
    if not found:
        to.error(f"{what} can't be read", "", "certificates as PEM, the server's own first")
    elif why := out_of_force(found, time.time()):
        to.warn(f"{what} {why}", "", "one that is good now")
    return found
