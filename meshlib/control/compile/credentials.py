"""The certificates of a Gateway's servers that stand in Secrets, as Envoy's secrets.

Rules (Istio):

- `kubernetes://<name>` is the certificate and key of the Secret of that name in the gateway's own namespace;
  `kubernetes://<name>-cacert` the CA of the Secret `<name>-cacert`, else that of `<name>`.
- A gateway is given those that its Gateways name, and no others. Keys are for service accounts of which an
  operator said that they are gateways; a CA is no secret. Istio asks Kubernetes whether an account may read
  Secrets.
- Keys travel by TLS only: a control service in plain text, which has no roots, gives none.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from meshlib.control.graph.graph import Graph
from meshlib.control.istio.secret import Credential, credential
from meshlib.xds import pb
from meshlib.xds.names import KUBERNETES_SECRET, OF_CA
from meshlib.xds.node import Client


def credentials(graph: Graph, namespace: str, names: Iterable[str], *, keys: bool) -> Iterator[Any]:
    """An envoy.extensions.transport_sockets.tls.v3.Secret for each of these names that there is; `keys`: also
    those with a key.
    """
    for name in names:
        plain = name.removeprefix(KUBERNETES_SECRET)
        found = _held(graph, namespace, plain)
        if keys and found is not None and found.chain and not plain.endswith(OF_CA):
            made = pb.Secret(name=name)
            made.tls_certificate.certificate_chain.inline_bytes = found.chain
            made.tls_certificate.private_key.inline_bytes = found.key
            yield made
        if not plain.endswith(OF_CA):
            continue
        if found is None or not found.roots:
            found = _held(graph, namespace, plain.removesuffix(OF_CA))
        if found is not None and found.roots:
            made = pb.Secret(name=name)
            made.validation_context.trusted_ca.inline_bytes = found.roots
            if found.revoked:
                made.validation_context.crl.inline_bytes = found.revoked
            yield made


def missing(graph: Graph, client: Client, names: Iterable[str], *, keys: bool) -> Iterator[str]:
    """Which of these names are not given, and why."""
    own, account = client.namespace, f"{client.namespace}/{client.service_account}"
    given = {one.name for one in credentials(graph, own, names, keys=True)}
    for name in names:
        plain = name.removeprefix(KUBERNETES_SECRET)
        if name not in given:
            yield f"there is no Secret {own}/{plain.removesuffix(OF_CA)} with what {name} needs"
        elif not keys and not plain.endswith(OF_CA):
            yield (
                f"{account} is not given the key of the Secret {own}/{plain}: nobody said that it is a "
                f"gateway; if it is one, start the control service with --gateway {account}"
            )


def _held(graph: Graph, namespace: str, name: str) -> Credential | None:
    document = graph.secrets.get((namespace, name))
    return None if document is None else credential(document.spec)
