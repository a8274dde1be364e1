"""`meshlib explain --node`: what a node's Envoy does for one workload."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from meshlib.bootstrap import bootstrap
from meshlib.cli import explain_inbound as inbound
from meshlib.cli import render
from meshlib.cli.explain_held import Held, held_of_control, held_of_folder
from meshlib.cli.explain_node import decide_outbound, decide_served, workloads
from meshlib.cli.explain_request import parse_caller
from meshlib.cli.foreign import escape
from meshlib.control.registration import Place, Registration
from meshlib.core.request import Peer, RequestHead
from meshlib.errors import ConfigError
from meshlib.xds.names import (
    MUTUAL,
    NODE_NAMESPACE,
    PASSTHROUGH_CLUSTER,
    TLS_MODE_LABEL,
    TUNNEL_HTTP,
    TUNNEL_LABEL,
)
from meshlib.xds.node import Client, Flavour

UID = "workload"
"""Of the one workload of a folder."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A workload behind a node's Envoy, and who is asked about it."""

    config: Path | None
    control: str | None
    node: str
    workload: str | None
    namespace: str
    account: str
    labels: dict[str, str]

    @property
    def uid(self) -> str:
        """Its name on the node. BadParameter: it was not said."""
        if self.config is not None:
            return self.workload or UID
        if self.workload is None:
            raise typer.BadParameter("which one of the node's?", param_hint="--workload")
        return self.workload

    def held(self, port: int) -> Held:
        """What its node's Envoy is sent; of a folder as if it served that port. MeshError."""
        client = Client(Flavour.NODE, NODE_NAMESPACE, self.node, node=self.node, id="explain")
        if self.config is not None:
            labels = {TLS_MODE_LABEL: MUTUAL, TUNNEL_LABEL: TUNNEL_HTTP} | self.labels
            one = Registration(
                *("explain", self.namespace, self.account, tuple(sorted(labels.items())), "192.0.2.1"),
                (("explain", port),),
                node=self.node,
                place=Place(self.uid, netns=f"/run/netns/{self.uid}"),
            )
            return held_of_folder(self.config, client, (one,))
        settings = bootstrap(
            control=self.control, namespace=NODE_NAMESPACE, service_account=self.node, state_dir=""
        )
        if settings.local:
            raise ConfigError(f"control: found {settings.control!r}; say --config for a folder")
        found = held_of_control(settings, client)
        if self.uid not in workloads(found):
            there = ", ".join(workloads(found)) or "none"
            raise ConfigError(f"the node {self.node} has no workload {self.uid}; those that it has: {there}")
        return found


def explain_outbound(of: Behind, head: RequestHead, host: str, port: int, *, as_json: bool) -> None:
    """Prints what becomes of a request that the workload sends."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    answer = decide_outbound(of.held(port), of.uid, head, port, target)
    url = f"{head.scheme}://{head.authority}{head.path}"
    if as_json:
        typer.echo(json.dumps({"request_line": {"method": head.method, "url": url}, **answer}, indent=2))
        return
    _show(
        f"{head.method} {url}",
        [f"  workload {escape(of.uid)} of the node {escape(of.node)}", *lines(answer)],
    )


def lines(answer: dict[str, Any]) -> list[str]:
    """What becomes of what the workload sends, line by line, as rich markup."""
    if answer["request"] is not None:
        found = render.lines(answer["request"])
    elif answer["connection"]:
        found = [
            "  the port is of connections; by their addresses they go to one of",
            *_names(answer["connection"]),
        ]
    else:
        passes = answer["elsewhere"] == PASSTHROUGH_CLUSTER
        what = "it goes where it was going, in plain text" if passes else "the connection is closed"
        found = [f"  no service has that port: {what} (outboundTrafficPolicy)"]
    spoken = {f"{where} by {how}" for each in answer["spoken"].values() for where, how in each.items()}
    return [*found, *(f"  {escape(one)}" for one in sorted(spoken))]


def _names(clusters: list[dict[str, Any]]) -> list[str]:
    return [f"        {escape(one['host'] or one['name'])}" for one in clusters]


def explain_inbound(of: Behind, caller: str | None, head: RequestHead, port: int, *, as_json: bool) -> None:
    """Prints how the workload's port takes a request of `caller`."""
    principal = parse_caller(caller, "")
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", port), principal, "", bool(principal))
    answer = decide_served(of.held(port), of.uid, head, port, peer, time.time())
    if answer is None:
        raise ConfigError(f"the node {of.node} has no workload {of.uid}")
    if as_json:
        said = {"method": head.method, "path": head.path, "port": port}
        typer.echo(json.dumps({"request": said, **answer}, indent=2))
        return
    hbone = ", and by HBONE at its port 15008" if answer["hbone"] else ""
    what = "requests are looked at" if answer["speaks_http"] else "connections are looked at, not requests"
    first = f"  workload {escape(of.uid)} of the node {escape(of.node)}: at the port{hbone}; {what}"
    _show(f"{head.method} {head.path} at port {port}", [first, *inbound.lines(answer)])


def _show(title: str, said: list[str]) -> None:
    console = Console()
    for line in (f"[bold]{escape(title)}[/]", *said):
        console.print(line, highlight=False, soft_wrap=True)
