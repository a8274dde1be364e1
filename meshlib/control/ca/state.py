"""The authority's own keys and certificates as one file: `authority.json`.

One file, because a rename is then the whole transaction: whoever reads finds all of the state before
a change, or all of it after. What can't be read is never made anew: a root that is lost is a mesh that
is lost, and only a person can decide that.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.control.ca.issuer import Issuer, make_issuer, make_root
from meshlib.control.ca.rotation import Generation
from meshlib.control.ca.store import read_secret, write_secret
from meshlib.errors import ConfigError
from meshlib.identity.keys import key_pem, load_key, same_key
from meshlib.identity.pem import load_bundle, to_pem

FILE = "authority.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class State:
    """All that the file holds."""

    trust_domain: str
    generations: tuple[Generation, ...]
    """The oldest first; at least one."""


def new_generation(trust_domain: str, now: float) -> Generation:
    """A root and an issuer with new keys."""
    label = secrets.token_hex(4)
    root_key, root = make_root(label, trust_domain, now)
    issuer = make_issuer(label, trust_domain, root_key, root, now)
    return Generation(label, now, now, None, root_key, issuer)


def read_state(folder: Path) -> State | None:
    """The state in a folder; None: there is none yet. ConfigError: it is unsafe or broken."""
    path = folder / FILE
    try:
        content = read_secret(path)
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']!r} is not known here")
        generations = tuple(_generation(one) for one in found["generations"])
        if not generations:
            raise ValueError("it holds no root")
        return State(str(found["trust_domain"]), generations)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # A parser's message may quote a key; those of this project never do.
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ConfigError(
            f"{path} is broken ({reason}); restore it from a copy, or move it away to begin with a new root"
        ) from None


def write_state(folder: Path, state: State) -> None:
    """Replaces the state whole. ConfigError: it can't be written, and the old one is still there."""
    content = {
        "version": VERSION,
        "trust_domain": state.trust_domain,
        "generations": [_spell(one) for one in state.generations],
    }
    write_secret(folder / FILE, json.dumps(content, indent=1).encode())


def _generation(found: Any) -> Generation:
    (root,), (issuer,) = load_bundle(found["root"]), load_bundle(found["issuer"])
    root_key, issuer_key = (load_key(found[name].encode()) for name in ("root_key", "issuer_key"))
    for certificate, key in ((root, root_key), (issuer, issuer_key)):
        if not same_key(certificate.public_key(), key.public_key()):
            raise ValueError("a key is not of its certificate")
    until = found["trusted_until"]
    return Generation(
        label=str(found["label"]),
        made=float(found["made"]),
        issues_from=float(found["issues_from"]),
        trusted_until=None if until is None else float(until),
        root_key=root_key,
        issuer=Issuer(issuer_key, (issuer, root)),
    )


def _spell(one: Generation) -> dict[str, Any]:
    return {
        "label": one.label,
        "made": one.made,
        "issues_from": one.issues_from,
        "trusted_until": one.trusted_until,
        "root": to_pem(one.issuer.root),
        "root_key": key_pem(one.root_key).decode(),
        "issuer": to_pem(one.issuer.chain[0]),
        "issuer_key": key_pem(one.issuer.key).decode(),
    }
