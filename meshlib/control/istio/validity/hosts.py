"""What may stand for a host, a port, a pattern, a duration or a place, wherever one is given."""

import ipaddress
from collections.abc import Iterable, Mapping

import re2

from meshlib.control.istio.duration import spell
from meshlib.control.istio.fields import LabelSelector, StringMatch, WorkloadSelector, camel
from meshlib.control.istio.validity.report import Report

_LABEL = re2.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_WILD = re2.compile(r"\*(-?[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_DNS_LABEL = re2.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TOKEN = re2.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_KEY = re2.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?")
_VALUE = re2.compile(r"([a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?)?")
_TEMPLATE = re2.compile(r"(?s)([^%]|%%|%[A-Z0-9_]+(\([^)]*\))?(:[0-9]+)?%)*")
_ESCAPE = re2.compile(r"(?s)\\(.|$)")
_QUIET = re2.Options()
_QUIET.log_errors = False

PROTOCOLS = (
    "HTTP",
    "HTTP_PROXY",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "HTTP2",
    "MONGO",
    "REDIS",
    "MYSQL",
    "TCP",
    "TLS",
    "UDP",
)
MAX_PATTERN = 1024
"""Bytes of a pattern, as in Istio."""
MAX_SECONDS = 290 * 365 * 86_400
"""What a duration can hold, here as in Istio."""
HOST = "a DNS name, such as reviews or reviews.default.svc.cluster.local"
FULL = "a DNS name with a dot in it; * alone or as its first label"
LABEL = "up to 63 letters, digits and -"
DNS_LABEL = "up to 63 lower case letters, digits and -"
LABEL_KEY = "[DNS name/]up to 63 letters, digits, -, _ and ."
WILDCARD = HOST + "; * only at its beginning"


def is_ip(text: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_subnet(text: str) -> bool:
    """Whether this is an IP address or a CIDR range."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def is_host(text: str, wildcard: bool = False) -> bool:
    """Whether this is a DNS name; one that ends with a dot or a number is none."""
    if not text or len(text) > 255:
        return False
    first, *rest = text.split(".")
    if not is_label(first) and not (wildcard and len(first) <= 63 and _WILD.fullmatch(first)):
        return False
    return all(map(is_label, rest)) and not (rest[-1] if rest else "").isdecimal()


def is_label(text: str) -> bool:
    """Whether this is a label as Istio has it: up to 63 letters of either case, digits and -."""
    return _LABEL.fullmatch(text) is not None


def overlap(one: str, two: str) -> bool:
    """Whether a name can match both hosts, of which either may be a wildcard."""
    one, two = one.lower(), two.lower()
    if one.startswith("*") and two.startswith("*"):
        return one.endswith(two[1:]) or two.endswith(one[1:])
    if one.startswith("*"):
        return two.endswith(one[1:])
    return one.endswith(two[1:]) if two.startswith("*") else one == two


def covers(wide: str, narrow: str) -> bool:
    """Whether every name that the second host matches is matched by the first."""
    wide, narrow = wide.lower(), narrow.lower()
    return narrow.endswith(wide[1:]) if wide.startswith("*") else wide == narrow


def host(text: str, to: Report, wildcard: bool = False, ip: bool = False) -> None:
    """A host that something is sent to; an IP address is one in some places only."""
    if not is_host(text, wildcard) and not (ip and is_ip(text)):
        to.error("not a host", repr(text), WILDCARD if wildcard else HOST)


def is_full(text: str) -> bool:
    """Whether this is `*`, a DNS name with a dot in it, or one whose first label is `*`."""
    if text == "*":
        return True
    return "." in text and is_host(text, wildcard=True) and ("*" not in text or text.startswith("*."))


def protocol(text: str, to: Report) -> None:
    """The protocol of a port."""
    if text.upper() not in PROTOCOLS:
        to.error("unknown protocol", repr(text), ", ".join(PROTOCOLS))


def socket(text: str, to: Report) -> None:
    """The address of a Unix socket."""
    path = text.removeprefix("unix://")
    if not path.startswith("@") and (not path.startswith("/") or path.endswith("/")):
        to.error("not the path of a socket", repr(text), "unix:///an/absolute/path or unix://@name")


def bind(text: str, to: Report, unix: bool = False) -> None:
    """The address that a listener is bound to, if any."""
    if unix and text.startswith("unix://"):
        socket(text, to)
    elif text and not is_ip(text):
        to.error("not an IP address", repr(text), "an IP address" + (" or unix:///path" if unix else ""))


def port(number: int, to: Report) -> None:
    """A port number."""
    if not 1 <= number <= 65535:
        to.error("not a port", number, "1 to 65535")


def regex(pattern: str, to: Report) -> None:
    """An RE2 pattern."""
    if not pattern:
        to.error("an empty pattern", "''", "a pattern")
        return
    if len(pattern.encode("utf-8", "replace")) > MAX_PATTERN:
        to.error("a pattern that is too long", len(pattern), f"at most {MAX_PATTERN} bytes")
        return
    try:
        re2.compile(pattern, _QUIET)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        to.error(f"not an RE2 pattern: {text}", repr(pattern), "https://github.com/google/re2/wiki/Syntax")
    except UnicodeError:
        to.error("not an RE2 pattern", repr(pattern), "text that is valid Unicode")


def substitution(pattern: str, text: str, to: Report) -> None:
    """What replaces the matches of a pattern; `\\1` is its first group."""
    one_line(text, to)
    try:
        groups = re2.compile(pattern, _QUIET).groups
    except (re2.error, UnicodeError):
        return
    # RE2 replaces nothing at all if one of them is wrong.
    for found in _ESCAPE.finditer(text):
        what = found.group()[1:]
        if what != "\\" and not (what.isdecimal() and int(what) <= groups):
            to.error("no group of the pattern", repr(found.group()), f"\\0 to \\{min(groups, 9)}, or \\\\")


def text_match(
    match: StringMatch | None, to: Report, empty: bool = True, star: bool = False, prefix: bool = False
) -> None:
    """A StringMatch; some places want something in it, some take an empty prefix or `*` as a pattern."""
    if match is None or (prefix and match.prefix == ""):
        return
    # Of withoutHeaders * means: present. Elsewhere it is a pattern like any other, and none.
    if match.regex is not None and not (star and match.regex == "*"):
        regex(match.regex, to.at("regex"))
        return
    if match.prefix == "":
        to.at("prefix").error("an empty prefix", "''", "a text, or {} for any value")
    elif not empty and not (match.exact or match.prefix or match.regex):
        to.error("nothing to match", "nothing", "exact, prefix or regex with a text")


def matches(given: Mapping[str, StringMatch], to: Report, star: bool = False) -> None:
    """StringMatches by the name of what they match."""
    for name, match in given.items():
        if not name:
            to.error("an empty name", "''", "a name")
        text_match(match, to.at(name), star=star)


def header_name(name: str, to: Report) -> None:
    """The name of a header."""
    if _TOKEN.fullmatch(name.removeprefix(":")) is None:
        to.error("not the name of a header", repr(name), "letters, digits and -")


def template(value: str, to: Report) -> None:
    """The value of a header, in which Envoy fills in what stands between two %."""
    if any((char < " " and char != "\t") or char == "\x7f" for char in value):
        to.error("a control character in a header", repr(value), "one line of text")
    elif _TEMPLATE.fullmatch(value) is None:
        to.error("a % that stands for nothing", repr(value), "%NAME%, %NAME(text)%, or %% for a percent sign")


def one_line(text: str, to: Report) -> None:
    """A text that goes into a request's or response's head."""
    if any(char in text for char in "\r\n\0"):
        to.error("a line break", repr(text), "one line")


def duration(value: float | None, to: Report, zero: bool = False) -> None:
    """At least 1 ms, in whole milliseconds, as Istio has it."""
    if value is None or (zero and value == 0):
        return
    if value > MAX_SECONDS:
        to.error("too long a duration", spell(value), "at most 290 years")
        return
    thousands = round(value * 1000, 6)
    if thousands < 1:
        to.error("too short a duration", spell(value), "at least 1ms" + (", or 0s" if zero else ""))
    elif thousands != int(thousands):
        to.error("a duration finer than a millisecond", spell(value), "whole milliseconds")


def percent(value: float, to: Report) -> None:
    """0 to 100."""
    if not 0 <= value <= 100:
        to.error("not a percentage", value, "0 to 100")


def share(value: float, to: Report) -> None:
    """A percentage of requests, as fine as Envoy can draw it."""
    if 0 < value < 0.0001:
        to.error("too small a percentage", value, "0, or 0.0001 to 100")
    percent(value, to)


def label_key(text: str) -> bool:
    """Whether this is the name of a label: a name, with the DNS name of who gave it and a / before it."""
    prefix, slash, name = text.rpartition("/")
    return _KEY.fullmatch(name) is not None and (not slash or dns_name(prefix))


def labels(given: Mapping[str, str], to: Report) -> None:
    """Labels that Kubernetes would take."""
    for key, value in given.items():
        if not label_key(key):
            to.at(key).error("not the name of a label", repr(key), LABEL_KEY)
        if _VALUE.fullmatch(value) is None:
            to.at(key).error("not the value of a label", repr(value), "up to 63 letters, digits, -, _ and .")


def selecting(given: WorkloadSelector | LabelSelector | None, to: Report) -> None:
    """A selector of workloads, if there is one; its labels are in the field that its kind has."""
    if given is None:
        return
    name, found = (
        ("labels", given.labels)
        if isinstance(given, WorkloadSelector)
        else ("match_labels", given.match_labels)
    )
    if not found:
        to.warn("a selector without labels selects all workloads", "", f"{camel(name)}, or no selector")
    selector(found, to.at(name))


def selector(given: Mapping[str, str], to: Report) -> None:
    """Labels that select; a wildcard is no selector."""
    for key, value in given.items():
        if "*" in key or "*" in value:
            to.at(key).error("a selector with a wildcard", repr(value), "the label's whole value")
        if not key:
            to.error("an empty label", repr(key), "the name of a label")
        if len(value) > 63:
            to.at(key).error("too long a value of a label", len(value), "at most 63 characters")


def subnets(given: Iterable[str], to: Report) -> None:
    """IP addresses and CIDR ranges."""
    for index, text in enumerate(given):
        if not is_subnet(text):
            to.at(index).error("not an IP address or range", repr(text), "such as 10.1.0.0/16")


def dns_label(text: str) -> bool:
    """Whether this is a DNS label as Kubernetes has it: up to 63 lower case letters, digits and -."""
    return _DNS_LABEL.fullmatch(text) is not None


def dns_name(text: str) -> bool:
    """Whether this is a name of DNS labels, as Kubernetes has it: up to 253 characters, lower case."""
    return 0 < len(text) <= 253 and all(map(dns_label, text.split(".")))


def namespace(text: str) -> bool:
    """Whether this is the name of a namespace."""
    return dns_label(text)


def export_to(given: tuple[str, ...], to: Report, none: bool = False) -> None:
    """Who may see a document."""
    for index, text in enumerate(given):
        allowed = "*, . or a namespace" + (" or ~" if none else "")
        if text == "~" and none:
            if len(given) > 1:
                to.at(index).error("~ stands with others", repr(text), "~ alone")
        elif text not in ("*", ".") and not namespace(text):
            to.at(index).error("not a namespace", repr(text), allowed)
        if text in given[:index]:
            to.at(index).error("stands twice", repr(text), "each once")
    if "*" in given and len(given) > 1 and "~" not in given:
        to.error("* stands with others", ", ".join(given), "* alone, or namespaces")
