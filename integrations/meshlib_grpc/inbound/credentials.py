"""`meshlib_grpc.server_credentials()`: gRPC's own TLS, by the certificate of the moment.

Rules:

- A caller shows a certificate that the mesh's roots vouch for, or there is no connection. Whose it is, and
  whether that may call, the interceptor asks of each call.
- gRPC asks for the certificate at each handshake, so a new one and new roots need no restart. If there is
  none now, the last one stays.
"""

from collections.abc import Callable

import grpc

from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tls import Held
from meshlib.errors import ConfigError
from meshlib_grpc.inbound.standing import mesh_of


def server_credentials(mesh: Mesh | None = None) -> grpc.ServerCredentials:
    """For one `add_secure_port` of a server that takes connections itself. Waits for the first certificate.

    ControlUnavailable: none can be had. ConfigError: this mesh has none.
    """
    certs = mesh_of(mesh).certs
    if certs is None:
        raise ConfigError("server_credentials: a mesh from a folder, or in plain text, has no certificates")
    certs.ensure()
    return rotating(lambda: certs.held)


def rotating(held: Callable[[], Held | None]) -> grpc.ServerCredentials:
    """Credentials by what `held` gives; it has to give something at first."""
    last: list[Held | None] = [held()]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """None: as before."""
        found = held()
        if found is None or found is last[0]:
            return None
        made = _configuration(found)
        last[0] = found
        return made

    first = last[0]
    if first is None:
        raise ConfigError("server_credentials: there is no certificate")
    return grpc.dynamic_ssl_server_credentials(_configuration(first), fetch, True)


def _configuration(held: Held) -> grpc.ServerCertificateConfiguration:
    pair = (held.key_pem, held.chain_pem.encode())
    return grpc.ssl_server_certificate_configuration([pair], held.roots_pem.encode())
