"""What a Cluster's metadata says for telemetry: which service is behind it. Istio's spelling."""

from typing import Any

from meshlib.xds.names import ISTIO_METADATA

_SERVICES = "services"


def decode_service(metadata: Any) -> tuple[str, str, str] | None:
    """Host, name and namespace of the first service; None: it does not say, and that is nothing bad."""
    if ISTIO_METADATA not in metadata.filter_metadata:
        return None
    said = metadata.filter_metadata[ISTIO_METADATA].fields
    # Looked for with `in`: to ask a map of protobuf for a key puts it there.
    if _SERVICES not in said or not said[_SERVICES].list_value.values:
        return None
    fields = said[_SERVICES].list_value.values[0].struct_value.fields
    host, name, space = (
        fields[key].string_value if key in fields else "" for key in ("host", "name", "namespace")
    )
    return (host, name, space) if host else None
