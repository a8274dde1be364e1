"""`meshlib explain`: what the mesh would do with a request, and which line of which file says so.

The view is a real one: of a folder, compiled and decoded in this process, or of a running control
service, asked as the client that `--from` and `--label` describe. The library's own core decides.
"""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Output(Enum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


def explain(
    request: Annotated[
        list[str],
        typer.Argument(metavar="[METHOD] URL", help="Without METHOD it is GET.", show_default=False),
    ],
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A header; repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, help="A folder of Istio YAML, instead of a control service.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="A control service, ADDRESS:PORT; without it MESHLIB_CONTROL counts.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAMESPACE/ACCOUNT",
            help="Who asks: default/default. With --inbound also spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="A label of who asks; repeatable.")
    ] = None,
    inbound: Annotated[
        bool,
        typer.Option(
            "--inbound",
            help="Explain how the server takes the request, at the URL's port. --label and --namespace "
            "are the server's then, and without --from the caller comes in plain text.",
        ),
    ] = False,
    gateway: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Explain what the `meshlib gateway` of that name does with the request. --label are its "
            "labels, if not those of the name; --namespace and --account its identity; --from may be the "
            "caller's IP address.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Explain what the `meshlib node` of that name does for a workload: of a folder that of "
            "--from and --label, with --inbound of --namespace and --label; of a control service --workload.",
        ),
    ] = None,
    workload: Annotated[str | None, typer.Option(help="With --node: the workload's name there.")] = None,
    account: Annotated[str, typer.Option(help="With --gateway: its service account.")] = "default",
    namespace: Annotated[
        str, typer.Option(help="With --inbound: where the server lives; with --gateway: where that is.")
    ] = "default",
    output: Annotated[Output, typer.Option("--output", "-o", help="As text or as JSON.")] = Output.TEXT,
) -> None:
    """Say what becomes of a request: which rule matched, why earlier ones did not, where it goes and how."""
    from meshlib.cli.explain_decision import decide
    from meshlib.cli.explain_request import parse_identity, parse_labels, parse_request

    if config is not None and control is not None:
        raise typer.BadParameter("either a folder or a control service", param_hint="--config, --control")
    head, host, port = parse_request(request, header or ())
    if gateway is not None:
        from meshlib.cli.explain_gateway import explain_gateway

        if inbound or node is not None:
            raise typer.BadParameter("either a gateway or a server", param_hint="--gateway")
        labels = label or [f"istio={gateway}", f"app=istio-{gateway}"]
        who = (namespace, account, parse_labels(labels))
        explain_gateway(config, control, who, identity, (head, host, port), as_json=output is Output.JSON)
        return
    if node is not None:
        from meshlib.cli.explain_workload import Behind, explain_inbound, explain_outbound

        if inbound:
            server = Behind(config, control, node, workload, namespace, "default", parse_labels(label or ()))
            explain_inbound(server, identity, head, port, as_json=output is Output.JSON)
            return
        caller = Behind(config, control, node, workload, *parse_identity(identity), parse_labels(label or ()))
        explain_outbound(caller, head, host, port, as_json=output is Output.JSON)
        return
    if inbound:
        answer = _inbound(config or control, namespace, parse_labels(label or ()), identity, head, port)
        _show_inbound(head.method, head.path, port, answer, output)
        return
    namespace, account = parse_identity(identity)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    view = _view(config, control, target, namespace, account, parse_labels(label or ()))
    answer = decide(view, target, head)
    url = f"{head.scheme}://{host if ':' not in host else f'[{host}]'}:{port}{head.path}"
    if output is Output.JSON:
        typer.echo(json.dumps({"request": {"method": head.method, "url": url}, **answer}, indent=2))
        return
    from rich.console import Console

    from meshlib.cli.render import show_explanation

    show_explanation(Console(), f"{head.method} {url}", answer)


def _view(
    config: Path | None,
    control: str | None,
    target: str,
    namespace: str,
    account: str,
    labels: dict[str, str],
) -> Any:
    """What that client knows of `target`. MeshError: control is not reached, or what it says is refused."""
    import meshlib

    where = config if config is not None else control
    with meshlib.connect(
        where, namespace=namespace, service_account=account, labels=labels, state_dir=""
    ) as mesh:
        return mesh.prepare(target)


def _inbound(
    where: Any, namespace: str, labels: dict[str, str], caller: str | None, head: Any, port: int
) -> dict[str, Any]:
    """What the server of those labels does with the request at that port."""
    import time

    from meshlib.cli.explain_inbound import decide_inbound
    from meshlib.cli.explain_request import parse_caller
    from meshlib.cli.explain_served import served
    from meshlib.core.request import Peer

    parse_caller(caller, "")  # before a control service is asked: it may be down
    found = served(where, namespace, labels, port)
    principal = parse_caller(caller, next(iter(found.inbound.tls.trust_domains), ""))
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", port), principal, "", bool(principal))
    return decide_inbound(found, head, peer, time.time())


def _show_inbound(method: str, path: str, port: int, answer: dict[str, Any], output: Output) -> None:
    title = f"{method} {path} at port {port}"
    if output is Output.JSON:
        typer.echo(
            json.dumps({"request": {"method": method, "path": path, "port": port}, **answer}, indent=2)
        )
        return
    from rich.console import Console

    from meshlib.cli.explain_inbound import lines
    from meshlib.cli.foreign import escape

    console = Console()
    for line in (f"[bold]{escape(title)}[/]", *lines(answer)):
        console.print(line, highlight=False, soft_wrap=True)
