"""A mesh made by hand for servers: policies from YAML at every port, a certificate, a mode that changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from support.fake_mesh import FakeMesh, fake_mesh
from support.security_envoy import filters_of
from support.telemetry import Told

from meshlib.bootstrap import bootstrap
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.dataplane.decode.inbound import FILTERS
from meshlib.dataplane.tls import Contexts, Held
from meshlib.xds import pb

OWN = "spiffe://cluster.local/ns/foo/sa/httpbin"
DNS = "httpbin.foo.svc"


class Certs:
    """A workload's certificate that a test gives, in place of the control service's."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.contexts = Contexts(lambda: self.held)

    def ensure(self) -> Held:
        return self.held


class _EveryPort(dict[str, Inbound]):
    def __init__(self, policy: Inbound) -> None:
        self._policy = policy

    def __missing__(self, name: str) -> Inbound:
        return self._policy


class PolicedMesh(FakeMesh):
    """A workload `httpbin` of the namespace `foo`."""

    def __init__(self, documents: str = "", held: Held | None = None, told: Told | None = None) -> None:
        """`documents` as `security_envoy` reads them; `held`: its certificate; `told`: who hears of calls."""
        super().__init__(fake_mesh([1]).view)
        self.bootstrap = bootstrap({}, service="httpbin", namespace="foo", state_dir="")
        self.certs = None if held is None else Certs(held)
        self.contexts = None if self.certs is None else self.certs.contexts
        filters = tuple(
            FILTERS[pb.pack(config).type_url](name, config) for name, config in filters_of(documents).filters
        )
        self._policy = Inbound("inbound", ServerTls(InboundMode.PERMISSIVE, ("cluster.local",)), filters)
        self.mode("PERMISSIVE" if held else "DISABLE")
        if told is not None:
            self.telemetry = told.telemetry(self.bootstrap, lambda: self.view, OWN)

    def mode(self, name: str) -> None:
        """What the ports take from now on."""
        self._policy = replace(self._policy, tls=replace(self._policy.tls, mode=InboundMode[name]))
        self.view = replace(self.view, inbound=_EveryPort(self._policy))

    def on_close(self, call: Callable[[], None]) -> None:
        """It is never closed."""

    def prepare_inbound(self, port: int) -> Inbound:
        if self.failure is not None:
            raise self.failure
        return self._policy

    async def aprepare_inbound(self, port: int) -> Any:
        return self.prepare_inbound(port)
