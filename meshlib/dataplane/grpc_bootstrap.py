"""What gRPC's own xDS clients and servers, of any language, read at their start: `GRPC_XDS_BOOTSTRAP`.

Rules:

- `xds:///host:port` asks for the listener of that name, a server for the one of its address, as Istio's do.
- The certificate is read from files, by the provider `default`, which is what the control service names.
- The control service is reached by TLS with these files; or at a socket that leads there, for gRPC that knows
  no TLS towards it (Node.js) or would check its host name; or in plain text, if that was asked for.
"""

import socket
import ssl
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.certfolder import CHAIN, KEY, ROOTS, CertFolder
from meshlib.dataplane.tls import Held, control_context
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.names import INBOUND_LISTENER, split_authority
from meshlib.xds.node import Client, Flavour, Locality, to_node

FILE = "bootstrap.json"
PROVIDER = "default"
REFRESH = "5s"
"""Between two looks at the files."""
PATIENCE = 5.0
_INSECURE = {"type": "insecure"}


def grpc_bootstrap(
    settings: Bootstrap, name: str, folder: CertFolder | None, server_socket: str = ""
) -> dict[str, Any]:
    """The bootstrap as JSON's values. `name` is the node's id; `folder` None: there are no certificates;
    `server_socket`: the path of a socket that leads to the control service.
    """
    made: dict[str, Any] = {}
    server: dict[str, Any] = {"server_uri": settings.control, "channel_creds": [_INSECURE]}
    if folder is not None:
        files = {
            "certificate_file": folder.file(CHAIN),
            "private_key_file": folder.file(KEY),
            "ca_certificate_file": folder.file(ROOTS),
            "refresh_interval": REFRESH,
        }
        server["channel_creds"] = [{"type": "tls", "config": files}]
        made["certificate_providers"] = {PROVIDER: {"plugin_name": "file_watcher", "config": files}}
    if server_socket:
        server |= {"server_uri": f"unix://{server_socket}", "channel_creds": [_INSECURE]}
    server["server_features"] = ["xds_v3"]
    return {
        "xds_servers": [server],
        "node": _node(settings, name),
        **made,
        "server_listener_resource_name_template": f"{INBOUND_LISTENER}%s",
    }


def _node(settings: Bootstrap, name: str) -> dict[str, Any]:
    client = Client(
        Flavour.GRPC,
        namespace=settings.namespace,
        service_account=settings.service_account,
        labels=settings.labels,
        locality=Locality.parse(settings.locality),
        id=name,
    )
    node = to_node(client)
    where = client.locality
    locality = {"region": where.region, "zone": where.zone, "sub_zone": where.subzone}
    return {
        "id": node.id,
        "cluster": node.cluster,
        # Node.js refuses a node without it.
        "locality": {key: text for key, text in locality.items() if text},
        "metadata": pb.to_dict(node.metadata),
    }


def check_name(settings: Bootstrap, held: Held) -> None:
    """gRPC checks that the control service's certificate is for the host by which it is reached.

    ConfigError: it is not. OSError: nobody answers there now.
    """
    host, port = split_authority(settings.control, 0)
    try:
        with socket.create_connection((host, port), PATIENCE) as plain:
            context = control_context(held, held.roots_pem)
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"gRPC would not trust the control service {settings.control}: {error.verify_message}. Start it "
            f"with `meshlib control --name {host}`, or use --keep, which leads there by a socket of its own"
        ) from None
