"""The state of the authority as plain values: for `meshlib ca status` and the service's status.

    {"trust_domain", "source": "own" | "plug-in", "fingerprint",
     "root": certificate, "issuer": certificate,
     "roots": [certificate with "label", "trusted_until", "issues"],
     "rotation": {"phase", "until"}, "warnings": [text]}

A certificate is {"fingerprint", "subject", "begin", "end", "left"}: times in Unix seconds, `left` in
seconds, never below zero.
"""

from typing import Any

from cryptography import x509

from meshlib.control.ca import rotation
from meshlib.control.ca.issuer import DAY_S, Issuer
from meshlib.control.ca.plugin import PluggedIn
from meshlib.control.ca.state import State
from meshlib.identity.pem import fingerprint, load_bundle

ROOT_GRACE = 0.2
"""The share of its life that a root may have left before somebody is told (Istio: 20 percent)."""


def report(held: State | PluggedIn, trust_domain: str, now: float) -> dict[str, Any]:
    """All of it but the counts."""
    if isinstance(held, PluggedIn):
        issuer, source = held.issuer, "plug-in"
        roots = [
            _certificate(root, now) | {"label": "", "trusted_until": None, "issues": root == issuer.root}
            for root in load_bundle(held.roots_pem)
        ]
        phase, until = rotation.Phase.SETTLED, None
    else:
        signs, source = rotation.issuing(held.generations, now), "own"
        issuer = signs.issuer
        roots = [
            _certificate(one.issuer.root, now)
            | {"label": one.label, "trusted_until": one.trusted_until, "issues": one is signs}
            for one in rotation.trusted(held.generations, now)
        ]
        phase, until = rotation.phase(held.generations, now)
    return {
        "trust_domain": trust_domain,
        "source": source,
        "fingerprint": fingerprint(issuer.root),
        "root": _certificate(issuer.root, now),
        "issuer": _certificate(issuer.chain[0], now),
        "roots": roots,
        "rotation": {"phase": phase.value, "until": until},
        "warnings": _warnings(issuer, source, phase, now),
    }


def _warnings(issuer: Issuer, source: str, phase: rotation.Phase, now: float) -> list[str]:
    if issuer.end <= now:
        return ["the signing certificate has ended: nothing can be signed"]
    found = []
    remedy = "run `meshlib ca rotate-root`" if source == "own" else "replace the files"
    for what, certificate in (("root", issuer.root), ("signing certificate", issuer.chain[0])):
        begin = certificate.not_valid_before_utc.timestamp()
        end = certificate.not_valid_after_utc.timestamp()
        if end - now < (end - begin) * ROOT_GRACE and phase is not rotation.Phase.ANNOUNCED:
            found.append(f"the {what} ends in {(end - now) / DAY_S:.0f} days: {remedy}")
    return found[:1] if issuer.root == issuer.chain[0] else found


def _certificate(certificate: x509.Certificate, now: float) -> dict[str, Any]:
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return {
        "fingerprint": fingerprint(certificate),
        "subject": certificate.subject.rfc4514_string(),
        "begin": begin,
        "end": end,
        "left": max(end - now, 0.0),
    }
