"""Who am I, where is the control service, and what if it is down: one frozen `Bootstrap`.

Rules:

- An argument wins over the environment (`MESHLIB_…`), that over the default, which is Istio's.
- What can't be used is a ConfigError that names the setting, what was found and what is allowed.
  A MESHLIB_ variable that nobody reads is a warning with the nearest known name.
- `service` says which service this process is part of. If no labels are given it also gives the
  labels `app` and `service.istio.io/canonical-name`, by which Istio's selectors know a workload; given
  labels are never changed. It names the folder of the last good configuration, too.
- A control that is a path that exists, or is written like one (`./mesh`, `mesh/`, `mesh.yaml`), is
  a folder or file of YAML: control and library then run in this process. Else it is `host:port`.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from meshlib.errors import ConfigError
from meshlib.values import dataclass

PREFIX = "MESHLIB_"
DEFAULT_CONTROL = "127.0.0.1:15010"
CANONICAL_NAME = "service.istio.io/canonical-name"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")
_HEX = frozenset("0123456789abcdef")
_MAX_NAME = 253
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")
_MAX_TOKEN = 16 * 1024
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Everything that a process must know before it can ask. Made by `bootstrap`."""

    control: str = DEFAULT_CONTROL
    """`host:port`, or a path of YAML if `local`."""
    local: bool = False
    """Whether control and library run in this process, on the folder or file `control`."""
    namespace: str = "default"
    service: str = ""
    service_account: str = "default"
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""
    locality: str = ""
    """`region[/zone[/subzone]]`."""
    state_dir: Path | None = None
    """Where the last good configuration is kept; None: nowhere."""
    first_call_timeout: float = 5.0
    """Seconds that the first call to a target waits for its configuration."""
    idle_targets: float = 3600.0
    """Seconds after which a target that nothing called is forgotten."""
    max_targets: int = 1000
    """How many targets are held; the one unused for longest that nobody waits for makes room."""
    idle_connections: int = 256
    """How many connections of a client, and of one protocol, stay unused where another is made."""
    request_headers_timeout: float = 5.0
    """Seconds of a server for a caller's handshake, and again for the whole head of each request."""
    drain: float = 0.5
    """Seconds between saying DRAINING and leaving, so that clients hear of it."""
    address: str = ""
    """The IP address at which this process serves; empty: the one that leads to control."""
    ports: tuple[tuple[str, int], ...] = ()
    """What this process serves, by port name; sorted."""
    weight: int = 1
    ca_fingerprint: str = ""
    """`sha256:<hex>` of the mesh's root certificate: what to trust at the first contact."""
    ca_file: Path | None = None
    """The mesh's root certificates, PEM, instead of a fingerprint."""
    token: str = field(default="", repr=False)
    """What proves who this is at the first contact; later its certificate does."""
    token_file: Path | None = None
    """Where such a token is; read anew each time it is needed, for Kubernetes replaces it."""
    forward_headers: tuple[str, ...] = ("end-user",)
    """Headers of an inbound request, in lower case, that travel on with the calls made for it."""
    allow_plaintext: bool = False
    """Whether a control service without TLS is talked to: there is no identity then, and no mutual TLS."""

    access_log: str = ""
    """Where each request is told in a line, whatever the mesh's configuration says: `/dev/stdout`,
    `/dev/stderr`, a file, or `none`; empty: as the configuration says."""
    access_log_encoding: str = "TEXT"
    """`TEXT` or `JSON`."""
    access_log_dir: Path | None = None
    """Where the configuration may have access logs written; None: to /dev/stdout and /dev/stderr only."""
    tag_variables: tuple[str, ...] = ("HOSTNAME", "NODE_NAME", "POD_NAME", "POD_NAMESPACE")
    """Variables of the environment that the configuration may put into spans."""

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels as a mapping."""
        return dict(self.labels)


@dataclass(frozen=True, slots=True)
class _Setting:
    """One setting: how its text or argument becomes a value, and what is allowed, in words."""

    read: Callable[[Any], Any]
    allowed: str
    default: Any = field(default=None)
    secret: bool = False
    """Whether it is never shown."""


class _LabelError(ValueError):
    """A label that Kubernetes would refuse: what was found in it, and what is allowed."""


def bootstrap(environ: Mapping[str, str] | None = None, **arguments: Any) -> Bootstrap:
    """A Bootstrap from arguments (None: not given), environment (os.environ if None) and defaults.

    Arguments: `control`, `namespace`, `service`, `service_account`, `labels` (mapping or `a=b,c=d`),
    `locality`, `state_dir` (a path; empty: keep nothing), `first_call_timeout`, `idle_targets`,
    `request_headers_timeout`, `drain` (seconds), `max_targets`, `idle_connections`, `address`, `ports`
    (mapping or `http=9080`), `weight`, `ca_fingerprint`, `ca_file`, `token`, `token_file`, `forward_headers`
    (names, or `a,b`), `allow_plaintext`, `access_log` (a path, or `none`), `access_log_encoding`,
    `access_log_dir`, `tag_variables` (names, or `A,B`).
    ConfigError: one can't be used. TypeError: no such argument.
    """
    found = os.environ if environ is None else environ
    unknown = arguments.keys() - _SETTINGS.keys()
    if unknown:
        name = min(unknown)
        raise TypeError(f"no setting is named {name!r}{_did_you_mean(name)}")
    _warn_of_unknown(found)
    values: dict[str, Any] = {}
    for name, setting in _SETTINGS.items():
        variable = PREFIX + name.upper()
        if arguments.get(name) is not None:
            values[name] = _read(setting, name, arguments[name])
        elif variable in found and (found[variable] or name == "state_dir"):
            values[name] = _read(setting, variable, found[variable])
    return _complete(values, found)


def _complete(values: dict[str, Any], environ: Mapping[str, str]) -> Bootstrap:
    """What follows from other settings."""
    if "control" in values:
        values["control"], values["local"] = values["control"]
    service = values.get("service", "")
    if service and "labels" not in values:
        if not _LABEL_PART.fullmatch(service):
            raise ConfigError(f"service: found {service!r}; allowed is {_LABEL_VALUE}, or labels of your own")
        values["labels"] = (("app", service), (CANONICAL_NAME, service))
    if "state_dir" not in values:
        owner = service or values.get("service_account", "default")
        home = state_home(environ)
        values["state_dir"] = home and home / "meshlib" / values.get("namespace", "default") / owner
    return Bootstrap(**values)


def state_home(environ: Mapping[str, str]) -> Path | None:
    """XDG's state folder; a path that is not absolute counts as not set. None: there is no home."""
    given, home = Path(environ.get("XDG_STATE_HOME", "")), Path(environ.get("HOME", ""))
    if given.is_absolute():
        return given
    return home / ".local" / "state" if home.is_absolute() else None


def _read(setting: _Setting, name: str, given: Any) -> Any:
    try:
        return setting.read(given)
    except _LabelError as error:
        raise ConfigError(f"{name}: {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, KeyError):
        shown = "***" if setting.secret else repr(given)
        raise ConfigError(f"{name}: found {shown}; allowed is {setting.allowed}") from None


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and (name not in _SETTINGS or not variable.isupper()):
            said = _did_you_mean(name, PREFIX, str.upper)
            warnings.warn(f"{variable} is not a setting{said}", stacklevel=4)


def _did_you_mean(name: str, prefix: str = "", spelled: Callable[[str], str] = str) -> str:
    import difflib

    close = difflib.get_close_matches(name, sorted(_SETTINGS), n=1)
    return f"; did you mean {prefix}{spelled(close[0])}?" if close else ""


def _control(given: Any) -> tuple[str, bool]:
    text = os.fspath(given)
    if not text or "\0" in text:
        raise ValueError(text)
    looks_like_path = "/" in text or text.startswith((".", "~")) or text.endswith((".yaml", ".yml"))
    if not isinstance(given, str) or looks_like_path or Path(text).exists():
        return str(Path(text).expanduser()), True
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host) != bracketed:
        raise ValueError(text)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(text)
    return text, False


def _name(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= _MAX_NAME or not _PLAIN.issuperset(given):
        raise ValueError(given)
    return given


def _text(given: Any) -> str:
    if not isinstance(given, str) or len(given) > _MAX_NAME or not given.isprintable():
        raise ValueError(given)
    return given


def _pairs(given: Any) -> dict[str, str]:
    """`a=b,c=d`, or a mapping, as a mapping."""
    if not isinstance(given, str):
        return dict(given)
    found: dict[str, str] = {}
    for part in given.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or name.strip() in found:
            raise ValueError(given)
        found[name.strip()] = value.strip()
    return found


def _labels(given: Any) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(given)
    if not all(isinstance(name, str) and name and isinstance(text, str) for name, text in pairs.items()):
        raise ValueError(given)
    for name, text in pairs.items():
        prefix, slash, part = name.rpartition("/")
        if not _LABEL_PART.fullmatch(part) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            raise _LabelError(f"found the label name {name!r}; allowed is {_LABEL_NAME}")
        if text and not _LABEL_PART.fullmatch(text):
            raise _LabelError(f"found the value {text!r} of the label {name}; allowed is {_LABEL_VALUE}")
    return tuple(sorted(pairs.items()))


def _locality(given: Any) -> str:
    text = _text(given)
    parts = text.split("/")
    if text and (len(parts) > 3 or not all(part.strip() for part in parts)):
        raise ValueError(given)
    return text


def _ports(given: Any) -> tuple[tuple[str, int], ...]:
    found = tuple(sorted((_name(name), _whole(1, 65535)(number)) for name, number in _pairs(given).items()))
    if not found:
        raise ValueError(given)
    return found


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(given: Any) -> int:
        number = int(given)
        if isinstance(given, bool | float) or not least <= number <= most:
            raise ValueError(given)
        return number

    return read


def _seconds(least: float) -> Callable[[Any], float]:
    def read(given: Any) -> float:
        number = float(given)
        if isinstance(given, bool) or not math.isfinite(number) or number < least:
            raise ValueError(given)
        return number

    return read


def _state_dir(given: Any) -> Path | None:
    text = os.fspath(given)
    return Path(text).expanduser() if text else None


def _file(given: Any) -> Path:
    text = os.fspath(given)
    if not text:
        raise ValueError(given)
    return Path(text).expanduser()


def _fingerprint(given: Any) -> str:
    algorithm, _, digest = given.strip().lower().partition(":")
    plain = digest.replace(":", "")
    if algorithm != "sha256" or len(plain) != 64 or not _HEX.issuperset(plain):
        raise ValueError(given)
    return f"sha256:{plain}"


def _token(given: Any) -> str:
    if (
        not isinstance(given, str)
        or len(given) > _MAX_TOKEN
        or not given.isascii()
        or given.split() != [given]
    ):
        raise ValueError
    return given


def _names_of_headers(given: Any) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else list(given)
    found = tuple(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    if len(found) > 64 or not all(_TOKEN.issuperset(name) for name in found):
        raise ValueError(given)
    return found


def _variables(given: Any) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else list(given)
    found = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if len(found) > 64 or not all(name.isprintable() and "=" not in name for name in found):
        raise ValueError(given)
    return found


def _yes_or_no(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    return {"true": True, "1": True, "false": False, "0": False}[given.lower()]


def _access_log(given: Any) -> str:
    path = str(_file(given))
    return path if path != "none" or given == "none" else f"./{path}"


def _encoding(given: Any) -> str:
    if given.upper() not in ("TEXT", "JSON"):
        raise ValueError(given)
    return str(given.upper())


def _address(given: Any) -> str:
    import ipaddress  # half a millisecond that only servers need

    address = ipaddress.ip_address(given)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(given)
    return str(address)


_LABEL_VALUE = "up to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends"
_LABEL_NAME = f"[prefix/]name: {_LABEL_VALUE}; the prefix a lower-case DNS name"
_PLAIN_NAME = "lower-case letters, digits, '-' and '.'"
_SECONDS = "a number of seconds, 0 or more"
_SETTINGS = {
    "control": _Setting(_control, "host:port, [v6]:port, or the path of a folder or file of YAML"),
    "namespace": _Setting(_name, _PLAIN_NAME),
    "service": _Setting(_name, _PLAIN_NAME),
    "service_account": _Setting(_name, _PLAIN_NAME),
    "labels": _Setting(_labels, "name=value pairs, such as app=reviews,version=v1, each name once"),
    "locality": _Setting(_locality, "region[/zone[/subzone]], none of them empty"),
    "state_dir": _Setting(_state_dir, "the path of a folder, or nothing to keep no state"),
    "first_call_timeout": _Setting(_seconds(0.0), _SECONDS),
    "idle_targets": _Setting(_seconds(1.0), "a number of seconds, 1 or more"),
    "max_targets": _Setting(_whole(1, 20_000), "a whole number from 1 to 20000"),
    "idle_connections": _Setting(_whole(0, 1_000_000), "a whole number from 0 to 1000000"),
    "request_headers_timeout": _Setting(_seconds(0.1), "a number of seconds, 0.1 or more"),
    "drain": _Setting(_seconds(0.0), _SECONDS),
    "address": _Setting(_address, "the IP address at which others reach this process"),
    "ports": _Setting(_ports, "name=number pairs, such as http=9080, numbers from 1 to 65535"),
    "weight": _Setting(_whole(1, 128 * 1024), "a whole number from 1 to 131072"),
    "ca_fingerprint": _Setting(_fingerprint, "sha256: and 64 hex digits, as `meshlib control` prints it"),
    "ca_file": _Setting(_file, "the path of a file of PEM certificates"),
    "token": _Setting(_token, "a token, as `meshlib ca token` prints it", secret=True),
    "token_file": _Setting(_file, "the path of a file that holds a token"),
    "forward_headers": _Setting(_names_of_headers, "at most 64 names of headers, with commas between"),
    "allow_plaintext": _Setting(_yes_or_no, "true or false"),
    "access_log": _Setting(_access_log, "/dev/stdout, /dev/stderr, the path of a file, or none"),
    "access_log_encoding": _Setting(_encoding, "TEXT or JSON"),
    "access_log_dir": _Setting(_file, "the path of a folder"),
    "tag_variables": _Setting(_variables, "at most 64 names of environment variables, with commas between"),
}
SETTINGS = frozenset(_SETTINGS)
"""The names of all settings."""
