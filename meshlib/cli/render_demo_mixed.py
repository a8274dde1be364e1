"""What `meshlib demo --mixed` suggests to try."""

from meshlib.cli.demo_mixed_scenarios import FAULT, ONLY_REVIEWS
from meshlib.cli.demo_mixed_stage import WEIGHTS, MixedStage, shipped
from meshlib.cli.started import command


def mixed_suggestions(stage: MixedStage) -> list[tuple[str, str]]:
    """What, and how; some have no command."""
    api = f"{stage.page}/api/v1/products/0"
    ratings = stage.children["ratings v1"].url
    control = f"--control {stage.control_address} --state {stage.authority}"
    found = [
        ("The page comes in by the gateway:", f"curl -H 'Host: xyz.com' {stage.page}/productpage"),
        (
            "Four of five pages have black stars. Edit the weights, save, and reload; Node.js obeys, too:",
            f"$EDITOR {stage.mesh / WEIGHTS}",
        ),
        (
            "The Node.js program takes no plain text; it has no code for that:"
            if stage.capture
            else "The Envoy before the Node.js program takes no plain text:",
            f"curl {ratings}/ratings/0",
        ),
        ("Stars are for reviews alone; productpage is told so:", f"curl {api}/ratings"),
        ("… until that policy goes:", f"rm {stage.mesh / ONLY_REVIEWS}"),
        ("Have ratings fail for jason:", f"cp {shipped() / 'mixed' / FAULT} {stage.mesh}"),
        ("… who sees no stars then:", f"curl -H 'end-user: jason' {api}/reviews"),
        ("See the workloads of the node:", f"{command()} node list --socket {stage.socket}"),
        ("See who is connected:", f"{command()} status {control}"),
    ]
    if not stage.capture:
        told = (
            "The programs call by HTTP_PROXY. Captured (as root, on Linux) they need to know nothing of it."
        )
        found.append((told, ""))
    return found
