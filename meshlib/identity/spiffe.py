"""SPIFFE identities of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, exactly.

Rules:

- Five segments, nothing more: no port, query, fragment, escape or empty part (SPIFFE-ID, section 2; Istio).
- The scheme and the trust domain are compared in lower case, the path as it is.
- An '@' in a configured trust domain stands for a '.' (Istio, for accounts of a cloud).
"""

from meshlib.values import dataclass

SCHEME = "spiffe://"
_DOMAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
MAX_BYTES = 2048
"""SPIFFE-ID, section 2.3."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """The identity of a workload."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def of(cls, trust_domain: str, namespace: str, service_account: str) -> "SpiffeId":
        """From its parts. ValueError: one of them can't stand in an identity."""
        domain = trust_domain.replace("@", ".").lower()
        made = cls(domain, namespace, service_account)
        return cls.parse(str(made))

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """From `spiffe://td/ns/x/sa/y`. ValueError: it is anything else."""
        if len(text) > MAX_BYTES or text[: len(SCHEME)].lower() != SCHEME:
            raise ValueError(f"{text[:80]!r} is no SPIFFE identity")
        parts = text[len(SCHEME) :].split("/")
        if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise ValueError(
                f"{text[:200]!r} is not of the form spiffe://<domain>/ns/<namespace>/sa/<account>"
            )
        domain, namespace, account = parts[0].lower(), parts[2], parts[4]
        if not domain or not _DOMAIN.issuperset(domain):
            raise ValueError(f"{domain[:80]!r} is no trust domain")
        for name in (namespace, account):
            if not name or not _NAME.issuperset(name) or name in (".", ".."):
                raise ValueError(f"{name[:80]!r} is no name of a namespace or account")
        return cls(domain, namespace, account)
