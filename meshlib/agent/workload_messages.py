"""The messages of the SPIFFE Workload API, as its workload.proto has them; those of X.509 only.

They are no part of what the planes say to each other, so they have a pool of their own.
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TEXT, _MESSAGE, _BYTES = 9, 11, 12
_ONE, _MANY = 1, 3
_FIELDS: dict[str, tuple[tuple[str, int, int, int, str], ...]] = {
    "X509SVIDRequest": (),
    "X509SVID": (
        ("spiffe_id", 1, _ONE, _TEXT, ""),
        ("x509_svid", 2, _ONE, _BYTES, ""),
        ("x509_svid_key", 3, _ONE, _BYTES, ""),
        ("bundle", 4, _ONE, _BYTES, ""),
        ("hint", 5, _ONE, _TEXT, ""),
    ),
    "X509SVIDResponse": (
        ("svids", 1, _MANY, _MESSAGE, ".X509SVID"),
        ("crl", 2, _MANY, _BYTES, ""),
        ("federated_bundles", 3, _MANY, _MESSAGE, "map"),
    ),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (
        ("crl", 1, _MANY, _BYTES, ""),
        ("bundles", 2, _MANY, _MESSAGE, "map"),
    ),
}
"""Of each message: name, number, label, type and what it is of."""


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="workload.proto", syntax="proto3")
    for name, found in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, of in found:
            if of == "map":  # from trust domain to certificates
                entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, label=_ONE, type=_TEXT)
                entry.field.add(name="value", number=2, label=_ONE, type=_BYTES)
                of = f".{name}.{entry.name}"
            message.field.add(name=field, number=number, label=label, type=kind, type_name=of or None)
    made = descriptor_pool.DescriptorPool()
    made.AddSerializedFile(file.SerializeToString())
    return made


@functools.cache
def message(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))
