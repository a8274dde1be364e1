"""`meshlib ca token`: a token with which a workload gets its first certificate."""

import time
from typing import Annotated

import typer

from meshlib.cli.ca_options import State, Ttl, folder_of, life_of


def token(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NS", help="The workload's namespace.")
    ] = "default",
    account: Annotated[
        str | None, typer.Option(metavar="SA", help="The workload's service account; default: default.")
    ] = None,
    ttl: Ttl = "1h",
    single_use: Annotated[
        bool, typer.Option("--single-use", help="Good for one certificate and nothing else.")
    ] = False,
    operator: Annotated[
        bool,
        typer.Option(
            "--operator", help="For a person: may see the status. An account of the root namespace."
        ),
    ] = False,
    state: State = None,
) -> None:
    """Print a token that says who its bearer is; whoever has it can join as that."""
    from meshlib.control.ca.mesh import MeshNote
    from meshlib.control.ca.tokens import JoinTokens
    from meshlib.identity.spiffe import SpiffeId
    from meshlib.xds.names import NODE_NAMESPACE

    folder = folder_of(state)
    mesh = MeshNote.read(folder)
    if operator and namespace not in ("default", mesh.root_namespace):
        raise typer.BadParameter(f"operators are of {mesh.root_namespace}", param_hint="--namespace")
    if namespace == NODE_NAMESPACE:
        raise typer.BadParameter("nodes join by `meshlib ca node NAME`", param_hint="--namespace")
    life = life_of(ttl)
    own = "operator" if operator else "default"
    try:
        who = SpiffeId.of(mesh.trust_domain, mesh.root_namespace if operator else namespace, account or own)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--namespace, --account") from None
    typer.echo(JoinTokens.open(folder).issue(who, life, time.time(), single_use=single_use))
