"""An explanation as text for people: steps first, then what becomes of the request."""

from typing import Any

from rich.console import Console

from meshlib.cli.foreign import escape

Explanation = dict[str, Any]


def show_explanation(console: Console, request: str, answer: Explanation) -> None:
    """Prints what `explain_decision.decide` found for `request` (`GET http://…`)."""
    console.print(f"[bold]{escape(request)}[/]", highlight=False, soft_wrap=True)
    for line in lines(answer):
        console.print(line, highlight=False, soft_wrap=True)


def lines(answer: Explanation) -> list[str]:
    """The explanation, line by line, as rich markup."""
    if answer["encrypted"]:
        if answer["matched"]:
            origin = " ".join(part for part in (answer["document"], answer["source"]) if part)
            title = "  https:// is encrypted by the application; its connection goes by"
            return [f"{title} [cyan]{escape(origin)}[/]", *clusters(answer)]
        return [_encrypted(answer)]
    found = [*_host(answer), *(_step(step) for step in answer["steps"])]
    if not answer["matched"]:
        return [*found, "[red]no rule matches: 404, flag NR[/]"]
    found += [line for part in (_answered, clusters, _policies, _headers) for line in part(answer)]
    return found


def _encrypted(answer: Explanation) -> str:
    if answer["refused"]:
        return f"  [red]refused (ConnectFailed)[/]: {escape(answer['target'])}: {escape(answer['refused'])}"
    return (
        "  https:// is encrypted by the application: no rule takes it, and httpx sends it where the URL "
        "says. With http:// the mesh routes it, and encrypts it where the endpoint takes mutual TLS."
    )


def _host(answer: Explanation) -> list[str]:
    if answer["virtual_host"] is None:
        return [f"  [red]nothing is known of {escape(answer['target'])}[/]"]
    domains = ", ".join(answer["domains"][:4]) + (", …" if len(answer["domains"]) > 4 else "")
    return [f"  virtual host [cyan]{escape(answer['virtual_host'])}[/] [dim]({escape(domains)})[/]"]


def _step(step: dict[str, Any]) -> str:
    origin = " ".join(part for part in (step["document"], step["source"]) if part) or "default route"
    title = f"rule {step['number'] + 1} [cyan]{escape(origin)}[/]"
    if step["matched"]:
        return f"  [green]✓[/] {title}: {escape(step['conditions'])}"
    return f"  [dim]✗[/] {title}: [dim]{escape(step['why_not'])}[/]"


def _answered(answer: Explanation) -> list[str]:
    """What the mesh answers itself."""
    if answer["redirect"]:
        return [
            f"  redirect {answer['redirect']['status']} to [cyan]{escape(answer['redirect']['location'])}[/]"
        ]
    if answer["direct_response"]:
        direct = answer["direct_response"]
        return [f"  answered here: {direct['status']} {escape(repr(direct['body']))}"]
    return []


def clusters(answer: Explanation) -> list[str]:
    """Where it goes: `clusters`, `endpoints` and `target` of an explanation."""
    found: list[str] = []
    for cluster in answer["clusters"]:
        subset = f" subset [bold]{escape(cluster['subset'])}[/]" if cluster["subset"] else ""
        name = escape(cluster["host"] or cluster["name"])
        port = f":{cluster['port']}" if cluster["port"] else ""
        found.append(f"  {cluster['probability']:>4.0%} → [bold]{name}{port}[/]{subset}")
        found += _edits("    ", cluster)
        if cluster["passes_through"]:
            found.append(f"        to the address that the request names, {escape(answer['target'])}")
        elif cluster["probability"]:
            found += _endpoints([e for e in answer["endpoints"] if e["cluster"] == cluster["name"]])
    return found


def _endpoints(endpoints: list[dict[str, Any]]) -> list[str]:
    if not endpoints:
        return ["        [yellow]no endpoint is known[/]"]
    return [
        f"        {escape(endpoint['address'])} {_ELIGIBLE[endpoint['eligible']]}" for endpoint in endpoints
    ]


_ELIGIBLE = {True: "eligible", False: "[yellow]not eligible[/]"}


def _policies(answer: Explanation) -> list[str]:
    faults = [f"  injected fault: {escape(answer['fault'])}"] if answer["fault"] else []
    if not answer["clusters"]:
        return faults
    found = [
        *faults,
        f"  time-out {_seconds(answer['timeout_s'])}",
        f"  retries {_retries(answer['retries'])}",
    ]
    for mirror in answer["mirrors"]:
        subset = f" subset [bold]{escape(mirror['subset'])}[/]" if mirror["subset"] else ""
        found.append(f"  mirror {mirror['percent']:g} % → {escape(mirror['host'] or mirror['name'])}{subset}")
    if answer["rewrite"]:
        rewrite = answer["rewrite"]
        found.append(f"  sent as [cyan]{escape(rewrite['authority'])}{escape(rewrite['path'])}[/]")
    return found


def _seconds(seconds: float | None) -> str:
    return f"{seconds:g} s" if seconds else "none"


def _retries(retries: dict[str, Any] | None) -> str:
    if not retries:
        return "none"
    each = f", {retries['per_try_timeout_s']:g} s a try" if retries["per_try_timeout_s"] else ""
    return f"{retries['attempts']}{each}, on {', '.join(retries['retry_on'])}"


def _headers(answer: Explanation) -> list[str]:
    return _edits("  ", answer)


def _edits(indent: str, of: dict[str, Any]) -> list[str]:
    return [
        f"{indent}{direction} header: {escape(words)}"
        for direction in ("request", "response")
        for words in of[f"{direction}_headers"]
    ]
