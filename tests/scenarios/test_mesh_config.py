"""A saved edit of the MeshConfig: who is let in, who is an operator, and what can't change under way."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import wait_until
from support.hoarder import shows
from support.secure_mesh import SecureMesh, asked, failures, more, secure_mesh

from meshlib.control.ca.authority import Authority
from meshlib.control.serve import server
from meshlib.control.status import Operator, fetch_status
from meshlib.dataplane.grpc_call import CallEnded
from meshlib.dataplane.grpc_unary import call_once
from meshlib.errors import ControlUnavailable
from meshlib.identity.chain import Purpose, check_peer
from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.pem import join_pem, to_der
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER

OLD = SpiffeId("old.example", "shop", "cart")
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RELOAD_SECONDS", 0.05)


def config(**settings: Any) -> str:
    lines = "".join(f"{name}: {value}\n" for name, value in settings.items())
    return f"apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\n{lines}"


def certificate_of(context: ssl.SSLContext, control: SecureMesh) -> tuple[SpiffeId | None, str]:
    """Whose certificate a caller gets, or why none."""
    request = pb.IstioCertificateRequest(csr=make_csr(make_key(), None).decode())
    try:
        reply = call_once(
            control.address,
            pb.CREATE_CERTIFICATE,
            request.SerializeToString(),
            context=context,
            server_name=CONTROL_SERVER,
        )
    except CallEnded as error:
        return None, error.details
    chain = to_der(pb.IstioCertificateResponse.FromString(reply).cert_chain[0])
    return check_peer(chain, trust_domains=(), now=time.time(), purpose=Purpose.CLIENT), ""


def until(found: Callable[[], bool], what: str) -> None:
    wait_until(found, 60, what)


def test_an_alias_is_taken_and_given_up_as_soon_as_it_is_saved(tmp_path: Path) -> None:
    before = Authority.open(tmp_path / "ca", trust_domain=OLD.trust_domain, now=time.time())
    key = make_key()
    chain = join_pem(before.sign(make_csr(key, None).decode(), OLD, 3600, time.time())[:-1]).encode()
    with secure_mesh(tmp_path) as control:  # now in cluster.local
        context = shows(control.authority.roots_pem, key, chain)
        who, why = certificate_of(context, control)
        assert who is None
        assert "old.example" in why
        control.edit(config(trustDomainAliases="[old.example]"))
        until(lambda: certificate_of(context, control)[0] is not None, "the alias")
        # It is the same workload, in the trust domain of now.
        assert certificate_of(context, control)[0] == SpiffeId("cluster.local", "shop", "cart")

        async def watched() -> None:
            """An open connection ends with the alias."""
            host, _, port = control.address.rpartition(":")
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=CONTROL_SERVER
            )
            control.edit(config(trustDomainAliases="[]"))
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(60):
                    while await reader.read(1000):
                        pass
            writer.close()

        asyncio.run(watched())
        assert certificate_of(context, control)[0] is None


def test_operators_are_of_the_root_namespace_of_now(tmp_path: Path) -> None:
    def is_operator(namespace: str) -> bool:
        who = SpiffeId("cluster.local", namespace, "operator")
        token = control.tokens.issue(who, 60, time.time())
        try:
            fetch_status(control.address, 10, Operator(control.authority.roots_pem, token))
        except ControlUnavailable as error:
            assert "is no operator" in str(error)  # noqa: PT017 - the other case returns
            return False
        return True

    with secure_mesh(tmp_path) as control:
        assert is_operator("istio-system")
        assert not is_operator("ops")
        control.edit(config(rootNamespace="ops"))
        until(lambda: is_operator("ops"), "the new root namespace")
        assert not is_operator("istio-system")


def test_another_trust_domain_waits_for_a_restart_and_says_so(tmp_path: Path) -> None:
    def warnings() -> list[str]:
        assert control.service is not None
        return [str(one) for one in control.service.status()["warnings"]]

    with (
        secure_mesh(tmp_path, STRICT) as control,
        control.served(),
        control.joined("productpage") as mesh,
        asked(mesh) as asking,
    ):
        more(asking)
        control.edit(STRICT, config(rootNamespace="istio-system", trustDomain="new.example"))
        until(lambda: warnings() != [], "the warning")
        text = (control.documents / "mesh.yaml").read_text()
        line = text[: text.index("trustDomain")].count("\n") + 1
        (told,) = warnings()
        assert f"mesh.yaml:{line})" in told
        assert "still signed in 'cluster.local'" in told
        assert "list 'cluster.local' under trustDomainAliases" in told
        assert "found 'new.example'" in told
        more(asking)
        with control.joined("ratings") as late, asked(late) as newcomers:
            more(newcomers)
        assert {one.principals.pop() for one in newcomers} == {"spiffe://cluster.local/ns/default/sa/ratings"}
        control.edit(STRICT)
        until(lambda: warnings() == [], "the end of the warning")
        more(asking)
    assert failures(asking) == []
