"""Where certificates come from, on the wire: secrets of the same stream, files, or gRPC's own providers.

- `default` is the workload's own certificate. The control service never has its key: whoever runs the
  client serves it beside the stream (this library by itself).
- `ROOTCA` are the mesh's roots, which the control service serves to whoever asks.
- gRPC's clients have both from the provider `default` of their bootstrap.
- The agent beside an Envoy serves its own certificate, a node's those of its workloads by their SPIFFE ids,
  on a Unix socket: the static cluster `sds-grpc`, as with Istio's agent.
"""

from typing import Any

from meshlib.control.istio.meshconfig import MeshConfig, domain_name
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import OWN_SECRET, ROOTS_SECRET, SDS_CLUSTER
from meshlib.xds.node import Client, Flavour

PROVIDER = "default"
TLS_SOCKET = "envoy.transport_sockets.tls"


def roots_secret(roots_pem: bytes) -> Any:
    """The envoy.extensions.transport_sockets.tls.v3.Secret `ROOTCA`."""
    made = pb.Secret(name=ROOTS_SECRET)
    made.validation_context.trusted_ca.inline_bytes = roots_pem
    return made


def own_secret(client: Client, mesh: MeshConfig) -> str:
    """The name of the client's own certificate; of a node's workload, which is one of many, its SPIFFE id."""
    if client.flavour is not Flavour.NODE:
        return OWN_SECRET
    return str(SpiffeId(domain_name(mesh.trust_domain), client.namespace, client.service_account))


def show_own(common: Any, flavour: Flavour, own: str = OWN_SECRET) -> None:
    """Puts the workload's own certificate, the secret `own`, on a CommonTlsContext."""
    if flavour is Flavour.GRPC:
        common.tls_certificate_provider_instance.instance_name = PROVIDER
        common.tls_certificate_provider_instance.certificate_name = OWN_SECRET
    elif flavour in (Flavour.GATEWAY, Flavour.NODE):
        by_agent(common.tls_certificate_sds_secret_configs.add(), own)
    else:
        by_ads(common.tls_certificate_sds_secret_configs.add(), OWN_SECRET)


def trust_mesh(common: Any, *, grpc: bool) -> Any:
    """Puts the mesh's roots on a CommonTlsContext; gives the CertificateValidationContext for the rest."""
    if grpc:
        context = common.validation_context
        context.ca_certificate_provider_instance.instance_name = PROVIDER
        context.ca_certificate_provider_instance.certificate_name = ROOTS_SECRET
        return context
    combined = common.combined_validation_context
    combined.default_validation_context.SetInParent()
    by_ads(combined.validation_context_sds_secret_config, ROOTS_SECRET)
    return combined.default_validation_context


def put_socket(socket: Any, context: Any) -> None:
    """Puts a TLS context on an envoy.config.core.v3.TransportSocket."""
    socket.name = TLS_SOCKET
    socket.typed_config.CopyFrom(pb.pack(context))


def by_agent(config: Any, name: str) -> None:
    """An SdsSecretConfig of a secret that the agent beside the Envoy serves."""
    config.name = name
    source = config.sds_config.api_config_source
    source.api_type, source.transport_api_version = "GRPC", "V3"
    source.set_node_on_first_message_only = True
    source.grpc_services.add().envoy_grpc.cluster_name = SDS_CLUSTER
    config.sds_config.resource_api_version = "V3"


def by_ads(config: Any, name: str) -> None:
    """An SdsSecretConfig of a secret of the control service's own stream."""
    config.name = name
    config.sds_config.ads.SetInParent()
    config.sds_config.resource_api_version = "V3"
