"""Which providers of CUSTOM can be asked."""

import pytest
from support.security_envoy import graph_of

from meshlib.control.compile.extauthz import Authorizer, find_authorizer

DOCUMENTS = """apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: %s
  envoyExtAuthzGrpc: {service: %s, port: 9000}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: authz, namespace: foo}
spec: {hosts: [authz.mesh], ports: [{number: 9000, name: grpc, protocol: GRPC}], resolution: DNS}
"""


@pytest.mark.parametrize("name", ["a", "opa-2", "1", "a" * 63])
@pytest.mark.parametrize("service", ["authz.mesh", "foo/authz.mesh", "AUTHZ.mesh"])
def test_a_provider_with_the_name_of_a_label_is_asked(name: str, service: str) -> None:
    found = find_authorizer(name, graph_of(DOCUMENTS % (f'"{name}"', service)))
    assert isinstance(found, Authorizer)
    assert (found.host, found.cluster) == ("authz.mesh", "outbound|9000||authz.mesh")


@pytest.mark.parametrize("name", ["Opa", "opa_2", "opa.mesh", "-a", "a-", "a" * 64, "a b"])
def test_a_provider_with_another_name_is_not(name: str) -> None:
    found = find_authorizer(name, graph_of(DOCUMENTS % (f'"{name}"', "authz.mesh")))
    assert found == f"{name!r} is not the name of an extensionProvider that can be asked"


def test_a_provider_whose_service_is_of_another_namespace_is_not() -> None:
    found = find_authorizer("a", graph_of(DOCUMENTS % ("a", "bar/authz.mesh")))
    assert found == "the service 'bar/authz.mesh' of extensionProvider 'a' is not in the mesh"
