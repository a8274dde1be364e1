"""What `meshlib demo --mixed --once` does: Python, Node.js and nginx call each other, as the YAML says."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

import meshlib
from meshlib.cli import demo_driver
from meshlib.cli.demo_driver import Driver, Row, quick, seconds
from meshlib.cli.demo_mixed_stage import WEIGHTS, MixedStage, shipped

ACCOUNTS = "spiffe://cluster.local/ns/default/sa/"
XYZ = {"host": "xyz.com"}
"""As the tutorial's curl has it; the Gateway takes any."""
ONLY_REVIEWS, FAULT = "only-reviews.yml", "fault-for-jason.yml"
MANY, FEW = 100, 10
SPREAD = 0.16
"""Four standard deviations of a share of 20 % among `MANY`."""


class MixedScenarios(Driver):
    """They, on a stage that is up; `told` is called with each finished row."""

    def __init__(self, stage: MixedStage, told: Callable[[Row], None]) -> None:
        super().__init__(stage.mesh, told)
        self.stage = stage
        self._before = {path: path.read_text() for path in stage.mesh.iterdir()}

    async def run(self) -> list[Row]:
        """All of them, in order; the YAML is put back at the end."""
        mesh = self.stage.join()
        tls = self.stage.context()
        try:
            async with (
                mesh,
                meshlib.AsyncClient(mesh=mesh, timeout=10.0) as self.demo,
                httpx.AsyncClient(
                    base_url=self.stage.page, verify=tls, trust_env=False, timeout=10.0
                ) as self.browser,
            ):
                await self._play(
                    self.the_page,
                    self.plain_text,
                    self.identities,
                    self.authorization,
                    self.fault,
                    self.weights,
                )
        finally:
            self._remove(FAULT)
            for path, text in self._before.items():
                path.write_text(text)
        return self.rows

    async def the_page(self) -> None:
        """As the tutorial's curl asks for it: all of Bookinfo had a hand in it."""
        page = await self.browser.get("/productpage", headers=XYZ)
        seen = [f"{service} {_answered(page.text, service)}" for service in ("ratings", "details")]
        server = "nginx" if self.stage.nginx else "Python"
        stars = bool(re.search(r'class="stars (black|red)"', page.text))
        self._row(
            "the page, by way of the gateway",
            f"200, stars; ratings v1, Node.js; details v1, {server}",
            f"{page.status_code}, {'stars' if stars else 'no stars'}; {'; '.join(seen)}",
            page.is_success
            and stars
            and seen[0].startswith("ratings v1, Node.js")
            and seen[1].startswith("details v1, nginx" if server == "nginx" else "details v1"),
        )

    async def plain_text(self) -> None:
        """STRICT, whoever keeps the port that the mesh knows: a node's Envoy or Python."""
        asked = {name: f"{child.url}/stats" for name, child in self.stage.children.items() if child.url}
        seen = {name: await self._answer(url) for name, url in asked.items()}
        self._row(
            "plain text to each service" + ("" if self.stage.capture else ", where the mesh knows it"),
            f"cut off × {len(seen)}",
            ", ".join(f"{answer} × {count}" for answer, count in Counter(seen.values()).items()),
            set(seen.values()) == {"cut off"},
        )

    async def identities(self) -> None:
        """By their certificates, as x-forwarded-client-cert tells the Node.js program."""
        callers = set((await self._stats())["callers"])
        self._who_called("ratings (Node.js)", callers, "bookinfo-reviews")
        await self._readers(FEW)
        callers = set()
        for version in ("v2", "v3"):
            child = self.stage.children[f"reviews {version}"]
            callers |= set((await self.browser.get(f"{child.own_url}/stats")).json()["callers"])
        self._who_called("reviews (Python)", callers, "bookinfo-productpage", "bookinfo-ratings")

    def _who_called(self, service: str, callers: set[str], *accounts: str) -> None:
        self._row(
            f"whose certificates called {service}",
            ", ".join(accounts),
            ", ".join(sorted(caller.removeprefix(ACCOUNTS) for caller in callers)),
            callers == {f"{ACCOUNTS}{account}" for account in accounts},
        )

    async def authorization(self) -> None:
        """The node's Envoy asks who it is; an edit of the policy takes effect at once."""
        status = await self._own_call()
        stars = await self._has_stars({})
        self._row(
            "only reviews may call ratings",
            "productpage 403, reviews has stars",
            f"productpage {status}, reviews has {'stars' if stars else 'no stars'}",
            status == 403 and stars,
        )
        text = (shipped() / "mixed/mesh" / ONLY_REVIEWS).read_text()
        wider = text.replace('-reviews"]', '-reviews", "cluster.local/ns/default/sa/bookinfo-productpage"]')
        opened = await self._until_true(lambda: self._is(self._own_call, 200), self._put(ONLY_REVIEWS, wider))
        closed = await self._until_true(lambda: self._is(self._own_call, 403), self._put(ONLY_REVIEWS, text))
        limit = f"in {demo_driver.PUSH_LIMIT:.0f} s"
        self._row(
            "… edit: productpage may, too; and back",
            f"productpage 200 {limit}, 403 {limit}",
            f"productpage 200 in {seconds(opened)}, 403 in {seconds(closed)}",
            quick(opened) and quick(closed),
        )

    async def fault(self) -> None:
        """It happens in the caller, Python: nothing arrives at the Node.js program."""
        jason = {"end-user": "jason"}
        text = (shipped() / "mixed" / FAULT).read_text()
        before = await self._has_stars(jason)
        took = await self._until_true(
            lambda: self._is(lambda: self._has_stars(jason), False), self._put(FAULT, text)
        )
        asked = (await self._stats())["users"].get("jason", 0)
        starless = [not await self._has_stars(jason) for _ in range(FEW)]
        arrived = (await self._stats())["users"].get("jason", 0) - asked
        others = await self._has_stars({})
        self._remove(FAULT)
        self._row(
            "fault at ratings for jason",
            f"stars, in {demo_driver.PUSH_LIMIT:.0f} s none, 0 arrived of {FEW}; others stars",
            f"{'stars' if before else 'no stars'}, in {seconds(took)} none, {arrived} arrived of "
            f"{starless.count(True)}; others {'stars' if others else 'no stars'}",
            before and quick(took) and all(starless) and arrived == 0 and others,
        )

    async def weights(self) -> None:
        """What the Node.js program calls goes by the same rules: its proxy shares it out."""
        seen = await self._readers(MANY)
        share = seen["v3"] / max(1, seen.total())
        self._row(
            "Node.js calls reviews",
            f"v2 80 %, v3 20 % ± {SPREAD:.0%} of {MANY}",
            f"{_counts(seen)} of {seen.total()}",
            abs(share - 0.2) <= SPREAD and set(seen) == {"v2", "v3"},
        )
        text = (shipped() / "mixed/mesh" / WEIGHTS).read_text()
        text = text.replace(": 80", ": 0").replace(": 20", ": 100")
        took = await self._until_true(
            lambda: self._is(lambda: self._readers(FEW), Counter(v3=FEW)), self._put(WEIGHTS, text)
        )
        seen = await self._readers(FEW)
        self._row(
            "… edit: v3 100 %",
            f"v3 × {FEW}, in {demo_driver.PUSH_LIMIT:.0f} s",
            f"{_counts(seen)}, in {seconds(took)}",
            quick(took) and seen == {"v3": FEW},
        )

    async def _readers(self, times: int) -> Counter[str]:
        """Which version of reviews the Node.js program was answered by; a failure counts by its status."""

        async def once() -> str:
            response = await self.demo.get("http://ratings:9080/readers/0")
            return str(response.json()["reviews_version"] if response.is_success else response.status_code)

        seen: Counter[str] = Counter()
        for _ in range(times // FEW):
            seen.update(await asyncio.gather(*(once() for _ in range(FEW))))
        return seen

    async def _has_stars(self, headers: dict[str, str]) -> bool:
        answer = await self.browser.get("/api/v1/products/0/reviews", headers=XYZ | headers)
        return answer.is_success and '"stars"' in answer.text

    async def _own_call(self) -> int:
        """What productpage is answered that asks ratings itself."""
        return (await self.browser.get("/api/v1/products/0/ratings", headers=XYZ)).status_code

    async def _stats(self) -> dict[str, Any]:
        """What the Node.js program counted."""
        answer = await self.demo.get("http://ratings:9080/stats")
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    async def _is(self, ask: Callable[[], Awaitable[object]], wanted: object) -> bool:
        return await ask() == wanted


def _answered(html: str, service: str) -> str:
    """Which version of a service the page says that it had an answer of."""
    found = re.search(rf'<tr id="by-{service}">.*?class="version">([^<]*)<', html)
    return found[1] if found else "did not answer"


def _counts(seen: Counter[str]) -> str:
    return ", ".join(f"{version} × {count}" for version, count in sorted(seen.items()))
