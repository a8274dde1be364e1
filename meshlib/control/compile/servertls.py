"""The TLS of a Gateway's server as Envoy's DownstreamTlsContext.

Rules (Istio):

- `credentialName` is the secret `kubernetes://<name>` of the control service, its CA `kubernetes://<name>-cacert`;
  files are secrets of the agent beside the Envoy, `file-cert:<certificate>~<key>`, `file-root:<ca>` and
  `file-crl:<ca>~<revoked>`, which reads them again when they change.
- MUTUAL wants a certificate of its caller, OPTIONAL_MUTUAL checks the one it is shown; ISTIO_MUTUAL is the
  mesh's own certificate and roots.
- Versions are 1.2 to 1.3 unless said otherwise. ALPN offers h2 and http/1.1 where requests are looked at.
- Cipher suites and curves that Envoy does not know are left out: it would refuse everything that shares the
  listener or the secret.
- Nothing is served while the secret is missing: a connection for that name is closed.
- Who may not have keys (any more) is told another name, `withheld://<name>`, which nobody has: an Envoy keeps
  the secret of a name that it was told of until no listener asks for that name.
"""

from collections.abc import Iterable
from typing import Any

from meshlib.control.compile.secrets import by_ads, by_agent, show_own, trust_mesh
from meshlib.control.istio import tlsparameters
from meshlib.control.istio.gateway import ServerTLSMode, ServerTLSSettings, TLSProtocol
from meshlib.xds import pb
from meshlib.xds.names import FILE_CERT, FILE_CRL, FILE_ROOT, KUBERNETES_SECRET, OF_CA, WITHHELD_SECRET
from meshlib.xds.node import Flavour

FETCH_SECONDS = 2.0
"""How long a listener waits for a secret that may not be there."""
_VERSIONS = {
    TLSProtocol.TLS_AUTO: "",
    TLSProtocol.TLSV1_0: "TLSv1_0",
    TLSProtocol.TLSV1_1: "TLSv1_1",
    TLSProtocol.TLSV1_2: "TLSv1_2",
    TLSProtocol.TLSV1_3: "TLSv1_3",
}
_ALPN = ("h2", "http/1.1")
_ASKING = (ServerTLSMode.MUTUAL, ServerTLSMode.OPTIONAL_MUTUAL)


def server_tls(said: ServerTLSSettings, *, requests: bool, keys: bool = True) -> Any:
    """An envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext; `keys`: of Secrets, too."""
    made = pb.DownstreamTlsContext()
    common = made.common_tls_context
    if requests:
        common.alpn_protocols.extend(_ALPN)
    params = common.tls_params
    params.tls_minimum_protocol_version = _VERSIONS[said.min_protocol_version] or "TLSv1_2"
    params.tls_maximum_protocol_version = _VERSIONS[said.max_protocol_version] or "TLSv1_3"
    params.cipher_suites.extend(tlsparameters.suites(said.cipher_suites))
    params.ecdh_curves.extend(tlsparameters.curves(said.ecdh_curves))
    if said.mode is ServerTLSMode.ISTIO_MUTUAL:
        made.require_client_certificate.value = True
        show_own(common, Flavour.GATEWAY)
        _names(trust_mesh(common, grpc=False), said)
        return made
    for name in shown(said):
        given = keys or not name.startswith(KUBERNETES_SECRET)
        asked_for = name if given else WITHHELD_SECRET + name.removeprefix(KUBERNETES_SECRET)
        _ask(common.tls_certificate_sds_secret_configs.add(), asked_for)
    if said.mode in _ASKING:
        made.require_client_certificate.value = said.mode is ServerTLSMode.MUTUAL
        combined = common.combined_validation_context
        combined.default_validation_context.SetInParent()
        _ask(combined.validation_context_sds_secret_config, trusted(said))
        _names(combined.default_validation_context, said)
        if said.insecure_skip_verify:
            combined.default_validation_context.trust_chain_verification = "ACCEPT_UNTRUSTED"
    return made


def shown(said: ServerTLSSettings) -> Iterable[str]:
    """The secrets of the certificates that a server shows."""
    if named := said.credential_names or ((said.credential_name,) if said.credential_name else ()):
        return tuple(KUBERNETES_SECRET + name for name in named)
    pairs = [(pair.server_certificate, pair.private_key) for pair in said.tls_certificates]
    pairs = pairs or [(said.server_certificate, said.private_key)]
    return tuple(f"{FILE_CERT}{certificate}~{key}" for certificate, key in pairs)


def trusted(said: ServerTLSSettings) -> str:
    """The secret of the CA by which a server checks its callers' certificates."""
    if said.ca_certificates and said.ca_crl:
        return f"{FILE_CRL}{said.ca_certificates}~{said.ca_crl}"
    if said.ca_certificates:
        return FILE_ROOT + said.ca_certificates
    if said.ca_cert_credential_name:
        return KUBERNETES_SECRET + said.ca_cert_credential_name + OF_CA
    first = said.credential_name or next(iter(said.credential_names), "")
    return KUBERNETES_SECRET + first.removesuffix(OF_CA) + OF_CA


def asked(said: ServerTLSSettings) -> tuple[str, ...]:
    """The secrets that the control service has for a server."""
    if said.mode is ServerTLSMode.ISTIO_MUTUAL:
        return ()
    every = (*shown(said), *((trusted(said),) if said.mode in _ASKING else ()))
    return tuple(name for name in every if name.startswith(KUBERNETES_SECRET))


def _ask(config: Any, name: str) -> None:
    if name.startswith((KUBERNETES_SECRET, WITHHELD_SECRET)):
        by_ads(config, name)
    else:
        by_agent(config, name)
    config.sds_config.initial_fetch_timeout.CopyFrom(pb.duration(FETCH_SECONDS))


def _names(context: Any, said: ServerTLSSettings) -> None:
    for name in said.subject_alt_names:
        context.match_subject_alt_names.add(exact=name)
    context.verify_certificate_spki.extend(said.verify_certificate_spki)
    context.verify_certificate_hash.extend(said.verify_certificate_hash)
