"""`meshlib ca node`: for which workloads a node may speak, and the token with which it joins."""

import time
from typing import Annotated

import typer

from meshlib.cli.ca_options import State, Ttl, folder_of, life_of


def node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The node, as in `meshlib node --name NAME`.")],
    account: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NS/SA",
            help="It may speak for workloads of this account, or of all of a namespace (NS/*); repeatable. "
            "They replace those of before; without any those of before stay.",
        ),
    ] = None,
    ttl: Ttl = "1h",
    single_use: Annotated[
        bool, typer.Option("--single-use", help="A token that is good for one certificate and nothing else.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="It may speak for nobody any more, and is no node.")
    ] = False,
    state: State = None,
) -> None:
    """Say for which workloads a node may speak, and print a token with which it joins."""
    from meshlib.control.ca import nodes
    from meshlib.control.ca.mesh import MeshNote
    from meshlib.control.ca.tokens import JoinTokens
    from meshlib.identity.spiffe import SpiffeId
    from meshlib.xds.names import NODE_NAMESPACE

    folder = folder_of(state)
    mesh = MeshNote.read(folder)
    if remove:
        if account:
            raise typer.BadParameter("a node that is removed speaks for nobody", param_hint="--account")
        nodes.remove(folder, name)
        typer.echo(f"{name} may speak for nobody; certificates that it got end within 24 h", err=True)
        return
    life = life_of(ttl)
    try:
        who = SpiffeId.of(mesh.trust_domain, NODE_NAMESPACE, nodes.node_name(name))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    token = JoinTokens.open(folder).issue(who, life, time.time(), single_use=single_use)
    if account:
        try:
            nodes.allow(folder, name, account, operators=mesh.root_namespace)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--account") from None
    allowed = nodes.read_nodes(folder).get(name)
    if allowed is None:
        raise typer.BadParameter(
            f"{name} is new: say for whom it may speak, such as default/ratings", param_hint="--account"
        )
    typer.echo(f"{name} may speak for {', '.join(allowed)}", err=True)
    typer.echo(token)
