"""`meshlib explain --gateway`: whose Envoy is asked about, and how the answer is printed."""

import ipaddress
import json
import time
from pathlib import Path

import typer

from meshlib.bootstrap import bootstrap
from meshlib.cli.explain_edge import decide_edge
from meshlib.cli.explain_held import held_of_control, held_of_folder
from meshlib.core.request import RequestHead
from meshlib.errors import ConfigError
from meshlib.xds.node import Client, Flavour

Who = tuple[str, str, dict[str, str]]
"""Namespace, service account and labels."""


def explain_gateway(
    config: Path | None,
    control: str | None,
    who: Who,
    caller: str | None,
    asked: tuple[RequestHead, str, int],
    *,
    as_json: bool,
) -> None:
    """Prints what the gateway does with a request; `asked` as of `explain_request.parse_request`."""
    namespace, account, labels = who
    head, host, port = asked
    address = _address(caller)
    client = Client(Flavour.GATEWAY, namespace, account, tuple(sorted(labels.items())), id="explain")
    if config is not None:
        held = held_of_folder(config, client)
    else:
        settings = bootstrap(
            control=control, namespace=namespace, service_account=account, labels=labels, state_dir=""
        )
        if settings.local:
            raise ConfigError(f"control: found {settings.control!r}; say --config for a folder")
        held = held_of_control(settings, client)
    answer = decide_edge(held, head, host, port, address, time.time())
    url = f"{head.scheme}://{head.authority}{head.path}"
    if as_json:
        typer.echo(json.dumps({"request": {"method": head.method, "url": url}, **answer}, indent=2))
        return
    from rich.console import Console

    from meshlib.cli.foreign import escape
    from meshlib.cli.render_edge import lines

    console = Console()
    for line in (f"[bold]{escape(f'{head.method} {url}')}[/]", *lines(port, answer)):
        console.print(line, highlight=False, soft_wrap=True)


def _address(text: str | None) -> str:
    try:
        return str(ipaddress.ip_address(text or "127.0.0.1"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no IP address", param_hint="--from") from None
