"""Resources as a control service should never make them: real ones of the golden cases, changed anywhere.

Law: a decoder takes a message or raises Refused, and nothing else. What it takes becomes a view's value and
the lines of an access log.
"""

import contextlib
import functools
from typing import Any

from fuzz.choices import Choices
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from support.mesh_cases import SERVER, VIEW, asker, parsed, server
from support.mesh_cases import TESTS as ROOT

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.dataplane.accepted import Accepted
from meshlib.dataplane.ads import decoders
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.inbound import decode_inbound
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import INBOUND_LISTENER, inbound_port
from meshlib.xds.snapshot import Resource

_TEXTS = (
    "",
    "a",
    "*",
    "%",
    "%REQ(a",
    "/",
    "\0",
    "(",
    "a" * 300,
    "é",
    ":path",
    "x:99999",
    "-1",
    "{a}",
    "istio",
)
_NUMBERS = (0, 1, 2, 100, 101, 65_535, 65_536, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1, -(2**31))
_FLOATS = (0.0, 1.0, -1.0, 1e300, float("inf"), float("nan"))
_DEEP = 12


@functools.cache
def seeds() -> tuple[Resource, ...]:
    """One resource of each golden view's kinds, the largest of each case first."""
    made: dict[bytes, Resource] = {}
    for path in sorted(ROOT.glob("golden/*/in.yaml")):
        text = path.read_text()
        servers = [server(number, found) for number, found in enumerate(SERVER.findall(text))]
        graph = build_graph(documents_in(text, "in.yaml").documents, servers)
        for _, words in VIEW.findall(text):
            said = parsed(words)
            roots = (
                b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" if "roots" in said else b""
            )
            asked = frozenset(said.get("ask", "").replace("inbound:", INBOUND_LISTENER).split(",")) - {""}
            for one in GraphCompiler(graph, "1", roots_pem=roots).resources(asker(said), asked):
                made.setdefault(one.body, one)
    return tuple(made.values())


def resource(data: bytes) -> None:
    """A resource with up to eight changes."""
    choices = Choices(data)
    seed = choices.one(seeds())
    message = seed.message()
    for _ in range(1 + choices.below(8)):
        _change(message, choices)
    _take(seed.kind, seed.name, message)


def bytes_of_resource(data: bytes) -> None:
    """Any bytes as a resource of any kind."""
    choices = Choices(data)
    kind = choices.one(tuple(decoders()))
    name = choices.one(("a", f"{INBOUND_LISTENER}0.0.0.0:80"))
    _take_bytes(kind, name, choices.rest())


def _take(kind: Kind, name: str, message: Any) -> None:
    with contextlib.suppress(ValueError):  # a text that is no UTF-8
        _take_bytes(kind, name, message.SerializeToString())


def _take_bytes(kind: Kind, name: str, body: bytes) -> None:
    Accepted((kind,), decoders()).take(kind, name, "1", Resource(kind, name, "1", body))
    if kind is Kind.LISTENER and inbound_port(name) is not None:
        with contextlib.suppress(Refused, DecodeError):
            decode_inbound(Resource(kind, name, "1", body).message())


def _change(message: Any, choices: Choices) -> None:
    """Goes down somewhere, then changes a field."""
    path: list[tuple[Any, Any]] = []
    """Messages that were unpacked on the way, with the Any that each was in."""
    for _ in range(choices.below(_DEEP)):
        below = list(_messages(message))
        if not below:
            break
        inner = choices.one(below)
        if inner.DESCRIPTOR.full_name == "google.protobuf.Any":
            try:
                opened = pb.unpack(inner)
            except (KeyError, DecodeError):
                continue
            path.append((inner, opened))
            inner = opened
        message = inner
    _set(message, choices)
    for packed, opened in reversed(path):
        packed.value = opened.SerializeToString()


def _messages(message: Any) -> Any:
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if _is_map(field):
            entry = field.message_type.fields_by_name["value"]
            if entry.type == FieldDescriptor.TYPE_MESSAGE:
                yield from (value[key] for key in sorted(value))
        elif _repeated(field):
            yield from value
        else:
            yield value


def _set(message: Any, choices: Choices) -> None:
    fields = message.DESCRIPTOR.fields
    present = [field for field, _ in message.ListFields()]
    field = choices.one(present if present and choices.below(2) else fields) if fields else None
    if field is None:
        return
    if choices.below(4) == 1:
        message.ClearField(field.name)
    elif _is_map(field):
        _set_map(message, field, choices)
    elif _repeated(field):
        _set_list(message, field, choices)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _fill(getattr(message, field.name), choices)
    else:
        setattr(message, field.name, _scalar(field, choices))


def _set_map(message: Any, field: Any, choices: Choices) -> None:
    key = _scalar(field.message_type.fields_by_name["key"], choices)
    value = field.message_type.fields_by_name["value"]
    if value.type == FieldDescriptor.TYPE_MESSAGE:
        _fill(getattr(message, field.name)[key], choices)
    else:
        getattr(message, field.name)[key] = _scalar(value, choices)


def _set_list(message: Any, field: Any, choices: Choices) -> None:
    listed = getattr(message, field.name)
    what = choices.below(3)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        listed.append(_scalar(field, choices))
    elif what == 0 and listed:
        listed.add().CopyFrom(choices.one(listed))
    elif what == 1 and listed:
        del listed[choices.below(len(listed))]
    else:
        _fill(listed.add(), choices)


def _fill(message: Any, choices: Choices) -> None:
    message.SetInParent()
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        other = choices.one(_packable())
        message.CopyFrom(pb.pack(other()))
        if choices.below(4) == 1:
            message.value = choices.take(8)
        return
    for _ in range(choices.below(3)):
        _set(message, choices)


@functools.cache
def _packable() -> tuple[Any, ...]:
    names = {
        file.package + "." + name
        for path in _paths()
        for file in [pb.pool().FindFileByName(path)]
        for name in file.message_types_by_name
        if file.package.startswith("envoy.extensions")
    }
    return tuple(pb.message(name) for name in sorted(names))


def _paths() -> set[str]:
    """The files of the contract: those of the messages that are known by name, and all that they import."""
    found: set[str] = set()
    wait = [pb.message(full).DESCRIPTOR.file for full in pb._SHORT.values()]
    while wait:
        file = wait.pop()
        if file.name not in found:
            found.add(file.name)
            wait += file.dependencies
    return found


def _scalar(field: Any, choices: Choices) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return choices.below(2) == 1
    if field.type == FieldDescriptor.TYPE_BYTES:
        return choices.take(choices.below(20))
    if field.type == FieldDescriptor.TYPE_STRING:
        if choices.below(2):
            return choices.one(_TEXTS)
        return choices.take(choices.below(20)).decode("utf-8", "ignore")
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return choices.one(_FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return choices.one(field.enum_type.values).number if choices.below(4) else 77
    number = choices.one(_NUMBERS)
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    small = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
    bits = (31 if signed else 32) if small else (63 if signed else 64)
    return max(-(2**bits) if signed else 0, min(number, 2**bits - 1))


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _is_map(field: Any) -> bool:
    return _repeated(field) and bool(
        field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry
    )
