"""A workload as telemetry names it, and the three places that say who one is.

- This process: its settings.
- The server of an outbound request: its endpoint's metadata, as Istio writes it
  (`istio: {workload: name;namespace;canonical service;canonical revision;cluster}`).
- The caller of an inbound request: the header `x-envoy-peer-metadata`, which sidecars exchange. It is
  looked at only if the connection itself shows an identity of the mesh, which also gives the namespace.

Rules (Istio): the canonical service is the label `service.istio.io/canonical-name`, else
`app.kubernetes.io/name`, else `app`, else the workload's name; the revision is
`service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, else `version`, else `latest`.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.bootstrap import Bootstrap

PEER_METADATA = b"x-envoy-peer-metadata"
PEER_METADATA_ID = b"x-envoy-peer-metadata-id"
ENDPOINT_WORKLOAD = "istio/workload"
"""The endpoint's metadata, as `core.balance.endpoints.Endpoint.metadata` names it."""
_APP, _VERSION = "istio/app", "istio/version"
_SERVICE_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
_MOST_BYTES = 16 * 1024
_MOST_LETTERS = 253
CLUSTER = "Kubernetes"
"""Istio's name of the only cluster there is."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Empty text: it is not known."""

    name: str = ""
    namespace: str = ""
    service: str = ""
    """The canonical service."""
    revision: str = ""
    """The canonical revision; empty only if nothing is known of the workload."""
    app: str = ""
    version: str = ""
    cluster: str = ""


NOBODY = Workload()


def of_settings(settings: Bootstrap) -> Workload:
    """This process."""
    name = settings.service or settings.label_map.get("app", "") or settings.service_account
    return of_labels(name, settings.namespace, settings.label_map, CLUSTER)


def of_labels(name: str, namespace: str, labels: Mapping[str, str], cluster: str = "") -> Workload:
    """A workload with these labels."""
    return Workload(
        name,
        namespace,
        _first(labels, _SERVICE_LABELS) or name,
        _first(labels, _REVISION_LABELS) or "latest",
        labels.get("app", ""),
        labels.get("version", ""),
        cluster,
    )


def of_endpoint(metadata: tuple[tuple[str, str], ...]) -> Workload:
    """The workload behind an endpoint."""
    found = dict(metadata)
    parts = found.get(ENDPOINT_WORKLOAD, "").split(";")
    if len(parts) < 5:
        return NOBODY
    name, namespace, service, revision, cluster = parts[:5]
    app, version = found.get(_APP, ""), found.get(_VERSION, "")
    return Workload(name, namespace, service, revision or "latest", app, version, cluster)


def of_peer(header: bytes, namespace: str) -> Workload:
    """The caller, by what it says of itself; but `namespace` is that of its certificate."""
    if len(header) > _MOST_BYTES:
        return NOBODY
    from google.protobuf.message import DecodeError

    from meshlib.xds import pb

    message = pb.Struct()
    try:
        message.ParseFromString(base64.b64decode(header, validate=True))
    except (binascii.Error, DecodeError, ValueError):
        return NOBODY
    said = pb.to_dict(message)
    labels = said.get("LABELS")
    known = {k: v for k, v in labels.items() if _short(v)} if isinstance(labels, dict) else {}
    name, cluster = said.get("WORKLOAD_NAME"), said.get("CLUSTER_ID")
    return of_labels(
        str(name) if _short(name) else "", namespace, known, str(cluster) if _short(cluster) else ""
    )


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


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_LETTERS and value.isprintable()
