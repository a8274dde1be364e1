"""What becomes of a request at a gateway, as text for people: from the port inwards."""

from typing import Any

from meshlib.cli import render
from meshlib.cli.explain_edge import HOSTS_SHOWN
from meshlib.cli.explain_inbound import step_lines
from meshlib.cli.foreign import escape

Explanation = dict[str, Any]


def lines(port: int, answer: Explanation) -> list[str]:
    """The explanation, line by line, as rich markup."""
    notes = [f"  [yellow]note[/] {escape(note)}" for note in answer["notes"]]
    if answer["listener"] is None:
        there = ", ".join(map(str, answer["ports"])) or "none: no Gateway selects it"
        return [
            f"  [red]no listener for port {port}[/]: connections are refused; ports that there are: {there}",
            *notes,
        ]
    origin = escape(" ".join(part for part in (answer["document"], answer["source"]) if part))
    found = [f"  listener [cyan]{escape(answer['listens'])}[/], server [cyan]{origin}[/]"]
    if answer["others"]:
        found.append(
            f"  [dim]the port is served at other addresses, too: {escape(', '.join(answer['others']))}[/]"
        )
    if answer["closed"]:
        closed = f"  [red]the connection is closed[/]: {escape(answer['closed'])}"
        return [*found, closed, *_there("names that there are", answer["hosts"]), *notes]
    found += _tls(answer["tls"])
    if answer["connection"]:
        rule = escape(" ".join(answer["rule"].values()))
        spread = {
            "clusters": answer["connection"],
            "endpoints": answer["endpoints"],
            "target": "the caller's",
        }
        return [*found, f"  the connection is handed on by [cyan]{rule}[/]", *render.clusters(spread), *notes]
    if answer["security"] is None:
        return [*found, "  [red]no rule is for the connection: it is closed[/]", *notes]
    found += _security(answer["security"])
    if answer["https_redirect"]:
        found.append(f"  httpsRedirect: 301 to [cyan]{escape(answer['https_redirect'])}[/]")
    request = answer["request"]
    if request is not None and request["virtual_host"] is None:
        found += [
            "  [red]no rule is for the host: 404, flag NR[/]",
            *_there("hosts that there are", answer["hosts"]),
        ]
    elif request is not None:
        found += render.lines(request)
    return [*found, *notes]


def _tls(tls: Explanation | None) -> list[str]:
    if tls is None:
        return ["  plain text"]
    found = f"  TLS [bold]{tls['mode']}[/]"
    if tls["names"]:
        found += f" for {escape(', '.join(tls['names']))}"
    if tls["credentials"]:
        found += f", certificate: {escape(', '.join(tls['credentials']))}"
    told = [found]
    if tls["withheld"]:
        told.append("  [red]the key is withheld[/]: it is no --gateway of `meshlib control`; handshakes fail")
    return told


def _security(security: Explanation) -> list[str]:
    found = step_lines(security["steps"])
    if security["admitted"]:
        return found
    because = " ".join(part for part in (security["document"], security["source"]) if part)
    return [
        *found,
        f"  [red]answered {security['status']}[/]: {escape(security['detail'])} [cyan]{escape(because)}[/]",
    ]


def _there(what: str, names: list[str]) -> list[str]:
    shown = ", ".join(names[:HOSTS_SHOWN]) + (", …" if len(names) > HOSTS_SHOWN else "")
    return [f"  [dim]{what}: {escape(shown or 'none')}[/]"]
