"""What is measured, and the lines of the table that are made of it.

To add a line: a `Row`, and a `Run` for what it needs that is not measured yet.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """One thing that is measured each round."""

    who: str
    """A contestant, and after `via` a way that is not the plain one: `mesh via mtls`."""
    at_once: int = 1
    count: int = 200

    @property
    def name(self) -> str:
        """Of the contestant."""
        return self.who.partition(" via ")[0]


RUNS = (
    *(Run(who) for who in ("httpx", "httpx2", "aiohttp", "mesh", "lean")),
    *(Run(who) for who in ("mesh counted by the SDK", "mesh without metrics")),
    *(Run(who) for who in ("mesh via mtls", "lean via sidecars")),
    *(Run(who) for who in ("httpx via sidecars", "aiohttp via sidecars")),
    *(Run(who, 32, 400) for who in ("httpx", "httpx2", "aiohttp", "mesh")),
    Run("mesh", 512, 2048),
    *(Run("mesh aiohttp", at_once, count) for at_once, count in ((1, 200), (32, 400))),
    *(Run("mesh requests", threads, count) for threads, count in ((1, 200), (8, 400))),
    *(Run(who) for who in ("httpx sync", "httpx2 sync", "requests", "mesh sync")),
    *(Run(who, 8, 400) for who in ("httpx sync", "httpx2 sync", "requests", "mesh sync")),
)


@dataclass
class Results:
    """What was measured: of each run what each round told, and what was measured once."""

    rounds: dict[tuple[str, int], list[dict[str, float]]] = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether all of them took part."""
        return set(names) <= {who for who, _ in self.rounds} | set(self.once)

    def of(self, who: str, at_once: int, what: str) -> float:
        """The median, in microseconds for times."""
        return statistics.median(each[what] for each in self.rounds[who, at_once])

    def ratio(self, one: tuple[str, int], other: tuple[str, int], what: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.rounds[one], self.rounds[other], strict=True)
        return statistics.median(a[what] / b[what] for a, b in pairs)

    def more(self, one: str, other: str) -> float:
        """By how many microseconds the first takes longer than the second, one in flight."""
        pairs = zip(self.rounds[one, 1], self.rounds[other, 1], strict=True)
        return statistics.median(a["p50"] - b["p50"] for a, b in pairs)


@dataclass(frozen=True)
class Row:
    """A line of the table. `value` is asked if all that it `needs` took part."""

    title: str
    goal: str
    needs: Sequence[str]
    value: Callable[[Results], float]
    met: Callable[[float], bool]
    form: str = "{:.2f} x"


def _cpu(r: Results) -> float:
    mesh = r.rounds["mesh via mtls", 1]
    sidecars = r.rounds["lean via sidecars", 1]
    return sum(m["cpu"] for m in mesh) / sum(s["cpu"] + s["proxies"] for s in sidecars)


ROWS = (
    Row(
        "httpx API, 1 in flight, p50: bare httpx ÷ mesh",
        "≥ 2.5",
        ("httpx", "mesh"),
        lambda r: r.ratio(("httpx", 1), ("mesh", 1), "p50"),
        lambda v: v >= 2.5,
    ),
    Row(
        "httpx API, 32 in flight, requests/s: mesh ÷ bare httpx",
        "≥ 8",
        ("httpx", "mesh"),
        lambda r: r.ratio(("mesh", 32), ("httpx", 32), "rps"),
        lambda v: v >= 8,
    ),
    Row(
        "httpx API, 32 in flight, requests/s: mesh ÷ bare httpx2",
        "≥ 2.5",
        ("httpx2", "mesh"),
        lambda r: r.ratio(("mesh", 32), ("httpx2", 32), "rps"),
        lambda v: v >= 2.5,
    ),
    Row(
        "mesh, requests/s: 512 in flight ÷ 32 in flight",
        "≥ 0.75",
        ("mesh",),
        lambda r: r.ratio(("mesh", 512), ("mesh", 32), "rps"),
        lambda v: v >= 0.75,
    ),
    *(
        Row(
            f"{name}, {threads} thread{'s' * (threads > 1)}, requests/s: mesh ÷ bare",
            "≥ 1.5",
            (bare, mesh),
            lambda r, bare=bare, mesh=mesh, threads=threads: r.ratio((mesh, threads), (bare, threads), "rps"),
            lambda v: v >= 1.5,
        )
        for name, bare, mesh in (
            ("httpx sync API", "httpx sync", "mesh sync"),
            ("requests", "requests", "mesh requests"),
        )
        for threads in (1, 8)
    ),
    Row(
        "aiohttp, 1 in flight, p50: mesh − bare",
        "≤ 30 us",
        ("aiohttp", "mesh aiohttp"),
        lambda r: r.more("mesh aiohttp", "aiohttp"),
        lambda v: v <= 30,
        "{:.0f} us",
    ),
    Row(
        "aiohttp, 32 in flight, requests/s: mesh ÷ bare",
        "≥ 0.8",
        ("aiohttp", "mesh aiohttp"),
        lambda r: r.ratio(("mesh aiohttp", 32), ("aiohttp", 32), "rps"),
        lambda v: v >= 0.8,
    ),
    Row(
        "cost of the mesh itself, p50: rules on − off, same transport",
        "≤ 15 us",
        ("mesh", "lean"),
        lambda r: r.more("mesh", "lean"),
        lambda v: v <= 15,
        "{:.0f} us",
    ),
    Row(
        "the same with the SDK's own MeterProvider",
        "",
        ("mesh counted by the SDK", "lean"),
        lambda r: r.more("mesh counted by the SDK", "lean"),
        lambda v: v <= 15,
        "{:.0f} us",
    ),
    Row(
        "the same without an SDK that takes metrics",
        "",
        ("mesh without metrics", "lean"),
        lambda r: r.more("mesh without metrics", "lean"),
        lambda v: v <= 15,
        "{:.0f} us",
    ),
    Row(
        "added latency, p50: mesh with mTLS ÷ two Envoys with mTLS, same client",
        "≤ 0.25",
        ("mesh via mtls", "lean via sidecars"),
        lambda r: r.more("mesh via mtls", "lean") / r.more("lean via sidecars", "lean"),
        lambda v: v <= 0.25,
    ),
    Row(
        "CPU per request, client and proxies: mesh with mTLS ÷ two Envoys with mTLS",
        "≤ 0.33",
        ("mesh via mtls", "lean via sidecars"),
        _cpu,
        lambda v: v <= 1 / 3,
    ),
    Row(
        "import of meshlib and first response",
        "≤ 250 ms",
        ("mesh ready",),
        lambda r: r.once["mesh ready"],
        lambda v: v <= 250,
        "{:.0f} ms",
    ),
    Row(
        "resident memory over a bare httpx application",
        "≤ 40 MiB",
        ("mesh resident",),
        lambda r: r.once["mesh resident"] - r.once["httpx resident"],
        lambda v: v <= 40,
        "{:.0f} MiB",
    ),
    *(
        Row(
            f"a large {what}, bytes/s: mesh ÷ bare aiohttp",
            "≥ 0.8",
            (f"mesh {do}", f"aiohttp {do}"),
            lambda r, do=do: r.once[f"aiohttp {do}"] / r.once[f"mesh {do}"],
            lambda v: v >= 0.8,
        )
        for what, do in (("response", "download"), ("upload", "upload"))
    ),
    Row(
        "memory that a large response and upload take beside what there was",
        "flat",
        ("mesh grown",),
        lambda r: r.once["mesh grown"],
        lambda v: v <= 16,
        "{:.0f} MiB",
    ),
)
