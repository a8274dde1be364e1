"""Secret, as far as it holds a certificate for a Gateway: Kubernetes' `tls.crt`, `tls.key`, `ca.crt`,
`ca.crl`, or Istio's `cert`, `key`, `cacert`, `crl`.

Rules:

- Nothing of a secret is ever shown: not in problems, not in logs, not by `repr`.
- Whatever else a secret holds is forgotten when it is read.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, model_validator

from meshlib.control.istio.fields import Text
from meshlib.control.istio.kubernetes import Known

TLS_TYPE = "kubernetes.io/tls"
_KEYS = ("tls.crt", "tls.key", "ca.crt", "ca.crl", "cert", "key", "cacert", "crl")


class Secret(Known):
    """A Secret. It has no `spec` in YAML."""

    type: Text = ""
    data: Mapping[str, Any] = Field(default_factory=dict, repr=False)
    """Base64."""
    string_data: Mapping[str, Any] = Field(default_factory=dict, repr=False)
    """As it is; goes before `data`."""

    @model_validator(mode="before")
    @classmethod
    def _certificates_only(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {"type": value.get("type")} if isinstance(value.get("type"), str) else {}
        for group in ("data", "stringData"):
            given = value.get(group)
            found = given.items() if isinstance(given, Mapping) else ()
            kept[group] = {key: item for key, item in found if key in _KEYS}
        return kept


@dataclass(frozen=True, slots=True)
class Credential:
    """What a Secret holds for a server of a Gateway; PEM, empty: it holds none."""

    chain: bytes = b""
    key: bytes = field(default=b"", repr=False)
    roots: bytes = b""
    revoked: bytes = b""


def credential(spec: Secret) -> Credential:
    """What a Secret holds. ValueError: it can't be read; the message shows nothing of it."""
    said = _decoded(spec)
    if "cert" in said and "key" in said:
        names = ("cert", "key", "cacert", "crl")
    else:
        names = ("tls.crt", "tls.key", "ca.crt", "ca.crl")
    chain, key, roots, revoked = (said.get(name, b"") for name in names)
    return Credential(chain, key, roots or said.get("cacert", b""), revoked)


def _decoded(spec: Secret) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, text in spec.data.items():
        plain = "".join(text.split()) if isinstance(text, str) else "?"
        try:
            found[name] = base64.b64decode(plain, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"data {name} is no base64") from None
    found.update((name, text.encode()) for name, text in spec.string_data.items() if isinstance(text, str))
    return found
