"""Edits of the tutorial's `virtual-service-all.yml`, as a person makes them: a few lines of text.

Every edit starts from the shipped text, so edits do not build on each other.
"""

from importlib.resources import files

FILE = "virtual-service-all.yml"
ONLY_PRODUCTPAGE = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-productpage
spec:
  selector:
    matchLabels:
      app: reviews
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/bookinfo-productpage"]
  - to:
    - operation:
        paths: ["/stats", "/healthz"]
"""


def strict_mode() -> str:
    """The tutorial's file that allows nothing but mutual TLS."""
    return (files("meshlib_bookinfo") / "tutorial/enable-strict-mode.yml").read_text()


def with_weights(text: str, first: int, second: int) -> str:
    """`text`, with the last route to reviews v1 shared out between v1 and v2 by these weights."""
    lines = text.splitlines()
    at = _line_of_default_subset(lines)
    dash = next(number for number in range(at, -1, -1) if lines[number].lstrip().startswith("- destination:"))
    outer = lines[dash][: len(lines[dash]) - len(lines[dash].lstrip())]
    inner = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at + 1 : at + 1] = [
        f"{outer}  weight: {first}",
        f"{outer}- destination:",
        f"{inner}host: reviews",
        f"{inner}subset: v2",
        f"{outer}  weight: {second}",
    ]
    return "\n".join(lines) + "\n"


def broken(text: str) -> tuple[str, int]:
    """`text` with a weight that is no number, and the number of that line."""
    lines = with_weights(text, 80, 20).splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip() == "weight: 80")
    lines[at] = lines[at].replace("80", "eighty")
    return "\n".join(lines) + "\n", at + 1


def _line_of_default_subset(lines: list[str]) -> int:
    """Where the VirtualService of reviews sends everybody else: its last `subset: v1`."""
    inside, found = False, None
    for number, line in enumerate(lines):
        if line.startswith("---"):
            inside = False
        elif line.strip() == "name: reviews":
            inside = True
        elif inside and line.strip() == "subset: v1":
            found = number
    if found is None:
        raise ValueError(f"{FILE} has no route to reviews v1 any more")
    return found
