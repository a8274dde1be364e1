"""`meshlib ca token`: a token with which a workload gets its first certificate."""

import time
from pathlib import Path
from typing import Annotated

import typer


def token(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NS", help="The workload's namespace.")
    ] = "default",
    account: Annotated[
        str | None, typer.Option(metavar="SA", help="The workload's service account; default: default.")
    ] = None,
    ttl: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it may be used, such as 1h or 15m.")
    ] = "1h",
    single_use: Annotated[
        bool, typer.Option("--single-use", help="Good for one certificate and nothing else.")
    ] = False,
    operator: Annotated[
        bool,
        typer.Option(
            "--operator", help="For a person: may see the status. An account of the root namespace."
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The state folder of the control service. Without it: the one that `meshlib control` takes.",
        ),
    ] = None,
) -> None:
    """Print a token that says who its bearer is; whoever has it can join as that."""
    from meshlib.cli.ca import folder_of
    from meshlib.control.ca.mesh import MeshNote
    from meshlib.control.ca.tokens import JoinTokens
    from meshlib.control.istio.duration import seconds
    from meshlib.identity.spiffe import SpiffeId
    from meshlib.xds.names import NODE_NAMESPACE

    folder = folder_of(state)
    mesh = MeshNote.read(folder)
    if operator and namespace not in ("default", mesh.root_namespace):
        raise typer.BadParameter(f"operators are of {mesh.root_namespace}", param_hint="--namespace")
    if namespace == NODE_NAMESPACE:
        raise typer.BadParameter("nodes join by `meshlib ca node NAME`", param_hint="--namespace")
    try:
        life = int(seconds(ttl))
    except ValueError:
        raise typer.BadParameter(f"{ttl!r} is no duration such as 1h or 15m", param_hint="--ttl") from None
    own = "operator" if operator else "default"
    try:
        who = SpiffeId.of(mesh.trust_domain, mesh.root_namespace if operator else namespace, account or own)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--namespace, --account") from None
    typer.echo(JoinTokens.open(folder).issue(who, life, time.time(), single_use=single_use))
