"""Who the workloads at both ends of a request are, and the three places that say so.

- This process: its settings.
- The server of an outbound request: its endpoint's metadata.
- The caller of an inbound request: the header `x-envoy-peer-metadata`, which sidecars exchange. It is
  looked at only if the connection itself shows an identity of the mesh, which also gives the namespace.
"""

import base64
import binascii
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.xds.names import ISTIO_METADATA
from meshlib.xds.workload import NOBODY, Workload, from_metadata, named, workload_of

PEER_METADATA = b"x-envoy-peer-metadata"
PEER_METADATA_ID = b"x-envoy-peer-metadata-id"
_PREFIX = f"{ISTIO_METADATA}/"
MOST_BYTES = 4 * 1024
"""Of what a peer says of itself; of one who says more nothing is believed."""
_MOST_LETTERS = 253


def of_settings(settings: Bootstrap) -> Workload:
    """This process."""
    return workload_of(settings.namespace, settings.service_account, settings.label_map)


def of_endpoint(metadata: tuple[tuple[str, str], ...]) -> Workload:
    """The workload behind an endpoint, by `core.balance.endpoints.Endpoint.metadata`."""
    return from_metadata(
        {key.removeprefix(_PREFIX): value for key, value in metadata if key.startswith(_PREFIX)}
    )


def of_peer(header: bytes, namespace: str) -> Workload:
    """The caller, by what it says of itself; but `namespace` is that of its certificate."""
    if len(header) > MOST_BYTES:
        return NOBODY
    from google.protobuf.message import DecodeError

    from meshlib.xds import pb

    message = pb.Struct()
    try:
        message.ParseFromString(base64.b64decode(header, validate=True))
    except (binascii.Error, DecodeError, ValueError):
        return NOBODY
    said = pb.to_dict(message)
    labels, name, cluster = said.get("LABELS"), said.get("WORKLOAD_NAME"), said.get("CLUSTER_ID")
    known = {k: v for k, v in labels.items() if _short(v)} if isinstance(labels, dict) else {}
    if not _short(name):
        return NOBODY
    return named(str(name), namespace, known, str(cluster) if _short(cluster) else "")


def peer_metadata(settings: Bootstrap) -> bytes:
    """What this workload says of itself to its servers: the value of `x-envoy-peer-metadata`."""
    from meshlib.xds import pb

    own = of_settings(settings)
    message = pb.Struct()
    message.update(
        {
            "WORKLOAD_NAME": own.name,
            "NAMESPACE": own.namespace,
            "CLUSTER_ID": own.cluster,
            "LABELS": dict(settings.labels),
        }
    )
    return base64.b64encode(message.SerializeToString(deterministic=True))


def _short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_LETTERS and value.isprintable()
