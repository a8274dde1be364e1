"""What people and other programs write: YAML, and the small languages inside it."""

import contextlib
import functools
from typing import Any

import yaml
from fuzz.choices import Choices
from support.mesh_cases import TESTS, VIEW, asker, parsed

from meshlib.control.analysis.analyze import analyze
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.istio.problem import Severity
from meshlib.control.registration import Registration
from meshlib.control.sources.reader import UnreadableError, decode, read
from meshlib.control.sources.text import documents_in
from meshlib.core.request import RequestHead
from meshlib.dataplane.ads import decoders
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.telemetry import accesslog as lines
from meshlib.dataplane.telemetry import expression
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.xds import accesslog, cel
from meshlib.xds.names import INBOUND_LISTENER, inbound_port
from meshlib.xds.node import Client, Flavour, Locality

_HEAD = RequestHead("GET", "http", "a:80", "/x?y=z", ((b"User-Agent", b"u\xff"), (b"a", b"b")))
_ENDED = (
    Ended(_HEAD, 200, 1.5e9, 0.25, response={b"x": b"y"}, remote="10.0.0.1:80", upstream="[::1]:9"),
    Ended(_HEAD, 0, 0.0, 0.0, flags="UF"),
)
_LANGUAGES = (
    "request.headers['a']",
    "response.code",
    "==",
    "!=",
    "&&",
    "||",
    "in",
    "[",
    "]",
    "(",
    ")",
    "?",
    ":",
)
_WORDS = (
    *_LANGUAGES,
    *(
        "-",
        "!",
        "1",
        "2.5",
        "0u",
        "'a'",
        '"b"',
        "r'\\d'",
        "true",
        "null",
        "has(",
        "size(",
        ",",
        "duration('1h')",
    ),
    *(".matches('", ".startsWith(", "request.duration", "<", "+", "/", "%", "source.port", "connection.mtls"),
)
_PARTS = (
    *("%", "%%", "%REQ(", "A?B", ")", ":10", "%START_TIME", "(%Y-%f)", "%DURATION%", "%RESPONSE_CODE%", ":"),
    *("%REQ(:PATH)%", "%PROTOCOL%", "\n", "%START_TIME(%s.%3f)%", "é", "%HOSTNAME%", "%RESP(x)%"),
)


def conditions(data: bytes) -> None:
    """CEL: an expression is refused with a ValueError, or answers for every request."""
    text = _text(Choices(data), _WORDS, " ")
    with contextlib.suppress(ValueError):
        cel.condition(text)
        asked = expression.condition(text)
        for ended in _ENDED:
            assert asked(ended) in (True, False)


def formats(data: bytes) -> None:
    """Formats of access logs: taken if `wrong` says nothing, and then every request is one line."""
    text = _text(Choices(data), _PARTS, "")
    if accesslog.wrong(text):
        with contextlib.suppress(ValueError):
            accesslog.pieces(text)
        return
    for line in (lines.text(text), lines.as_json({"a": text, "b": [text]})):
        for ended in _ENDED:
            assert isinstance(line(ended), bytes)


def _text(choices: Choices, words: tuple[str, ...], between: str) -> str:
    if choices.below(2):
        return choices.rest().decode("utf-8", "replace")
    found: list[str] = []
    while choices.left:
        found.append(choices.one(words) if choices.below(8) else choices.take(3).decode("utf-8", "replace"))
    return between.join(found)


def files(data: bytes) -> None:
    """Any bytes as a file: problems, or documents, and no exception."""
    try:
        text = decode(data)
        list(read(text))
    except UnreadableError:
        text = data.decode("utf-8", "replace")
    for found in documents_in(text, "a.yaml").problems:
        assert str(found)


_VALUES: tuple[Any, ...] = (
    *(None, "", "a", "*", "*.a", "-1", "1s", "1h1ns", "0s", "a.b", "/", "%", "(", "é", "\0", "a" * 300),
    *(0, 1, -1, 100, 101, 70000, 2**40, 2**70, 0.5, 1e300, float("nan"), float("inf"), True, False),
    *([], {}, [None], [[]], {"": ""}, {"exact": "a"}, {"regex": "("}, {"prefix": ""}, {"number": 80}),
)


@functools.cache
def cases() -> tuple[tuple[str, tuple[Any, ...], Client, frozenset[str]], ...]:
    """The golden cases: documents, who asks, and for what."""
    made = []
    for path in sorted(TESTS.glob("golden/*/in.yaml")):
        text = path.read_text()
        for _, words in VIEW.findall(text)[:1]:
            said = parsed(words)
            asked = frozenset(said.get("ask", "").replace("inbound:", INBOUND_LISTENER).split(",")) - {""}
            made.append((text, tuple(yaml.safe_load_all(text)), asker(said), asked))
    return tuple(made)


_SERVERS = [
    Registration(
        id=f"server-{number}",
        namespace="default",
        service_account="default",
        labels=(("app", "reviews"), ("version", f"v{number}")),
        address=f"10.0.0.{number}",
        ports=(("http", 9080),),
        locality=Locality.parse("r/z/s"),
        weight=1,
        draining=number == 2,
    )
    for number in (1, 2)
]


def documents(data: bytes) -> None:
    """Documents of a golden case, changed anywhere: problems are told, and what passes is compiled."""
    choices = Choices(data)
    _, plain, who, asked = choices.one(cases())
    changed = [_copied(document) for document in plain]
    for _ in range(1 + choices.below(6)):
        _change(changed, choices)
    text = yaml.dump_all(changed, Dumper=_Dumper)
    found = documents_in(text, "in.yaml")
    for problem in found.problems:
        assert str(problem)
        assert problem.severity in Severity
    analyze(found.documents, found.problems)
    flavour = choices.one((who.flavour, Flavour.ENVOY, Flavour.GRPC))
    client = Client(flavour, namespace=who.namespace, labels=who.labels, locality=who.locality)
    compiler = GraphCompiler(build_graph(found.documents, _SERVERS), "1")
    for one in compiler.resources(client, asked):
        if flavour is Flavour.MESHLIB and one.kind in decoders() and inbound_port(one.name) is None:
            with contextlib.suppress(Refused):
                decoders()[one.kind](one.message())


class _Dumper(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _change(value: Any, choices: Choices) -> None:
    """Goes down somewhere, then changes a member."""
    for _ in range(choices.below(10)):
        inner = [
            v
            for v in (value.values() if isinstance(value, dict) else value)
            if v and isinstance(v, dict | list)
        ]
        if not inner:
            break
        value = choices.one(inner)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    what = choices.below(5)
    new = _copied(choices.one(_VALUES))
    if what == 0 and keys:
        value[choices.one(keys)] = new
    elif what == 1 and keys:
        del value[choices.one(keys)]
    elif what == 2 and isinstance(value, list) and value:
        value.append(_copied(choices.one(value)))
    elif isinstance(value, list):
        value.append(new)
    else:
        value[choices.one(_KEYS)] = new


_KEYS = (
    *(
        "host",
        "hosts",
        "subset",
        "subsets",
        "weight",
        "port",
        "ports",
        "number",
        "http",
        "tcp",
        "tls",
        "match",
    ),
    *("route", "retries", "timeout", "fault", "delay", "abort", "percentage", "value", "mirror", "headers"),
    *("trafficPolicy", "loadBalancer", "simple", "consistentHash", "outlierDetection", "connectionPool"),
    *("name", "namespace", "labels", "spec", "kind", "selector", "rules", "from", "to", "when", "action"),
    *("exportTo", "gateways", "delegate", "redirect", "rewrite", "corsPolicy", "regex", "exact", "prefix"),
)
