"""What `meshlib demo --once` does: each scenario makes real requests and compares with what the YAML says."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

import meshlib
from meshlib.cli import demo_driver
from meshlib.cli.demo_driver import Driver, Row, quick, seconds
from meshlib.cli.demo_edit import FILE, ONLY_PRODUCTPAGE, broken, strict_mode, with_weights
from meshlib.cli.demo_stage import JASON_WITH_CHROME, Stage

REVIEWS = "/api/v1/products/0/reviews"
CHROME = {"user-agent": JASON_WITH_CHROME["user-agent"]}
FIREFOX = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
MANY, FEW = 40, 20
SAMPLE = 400
"""Requests after a change of weights."""
SPREAD = 0.08
"""Four standard deviations of a share of 20 % among 400."""
PAGE_LIMIT = 1.5
"""Seconds within which a page is there, on top of what it waits for."""
REJOIN_LIMIT = 15.0
"""Seconds within which clients find a restarted control service again."""


@dataclass
class Traffic:
    """Requests of everybody else, sent without pause while something happens."""

    failed: list[str] = field(default_factory=list)
    answers: list[tuple[float, str]] = field(default_factory=list)
    """When each was asked for, and which version answered."""

    @property
    def failures(self) -> str:
        """`0 failed of 412`."""
        return f"{len(self.failed)} failed of {len(self.answers)}"

    def since(self, moment: float) -> Counter[str]:
        """Who answered requests that were sent at `moment` or later."""
        return Counter(version for at, version in self.answers if at >= moment)

    def latest(self, count: int, moment: float) -> Counter[str]:
        """Who answered the last so many requests that were sent at `moment` or later; fewer, if there are."""
        return Counter([version for at, version in self.answers if at >= moment][-count:])

    def first(self, version: str, moment: float) -> float | None:
        """Seconds from `moment` until `version` answered a request; None if it did not."""
        return next((at - moment for at, who in self.answers if at >= moment and who == version), None)

    def last(self, version: str, moment: float) -> float:
        """Seconds from `moment` until `version` answered for the last time; 0 if it did not any more."""
        return max((at - moment for at, who in self.answers if at >= moment and who == version), default=0.0)


class Scenarios(Driver):
    """The demo's scenarios on a stage that is up; `told` is called with each finished row."""

    def __init__(self, stage: Stage, told: Callable[[Row], None]) -> None:
        super().__init__(stage.mesh, told)
        self.stage = stage
        self._file = stage.mesh / FILE
        self._shipped = self._file.read_text()

    async def run(self) -> list[Row]:
        """All of them, in order; the YAML is put back at the end."""
        try:
            async with httpx.AsyncClient(
                base_url=self.stage.page, verify=self.stage.context(), trust_env=False, timeout=10.0
            ) as self.browser:
                await self._play(
                    self.everybody_else,
                    self.jason,
                    self.the_page,
                    self.slow_ratings,
                    self.retries,
                    self.change_of_weights,
                    self.broken_edit,
                    self.strict,
                    self.authorization,
                    self.control_killed,
                )
        finally:
            self._file.write_text(self._shipped)
        return self.rows

    async def everybody_else(self) -> None:
        """v1 answers, v3 gets a copy of each."""
        before = await self._arrived("reviews v3")
        seen = await self._ask(MANY, {})
        self._row("everybody else", f"reviews v1 × {MANY}", _counts(seen), seen == {"v1": MANY})
        mirrored = await self._until(lambda: self._arrived("reviews v3"), before + MANY) - before
        self._row("… mirrored", f"{MANY} copies at v3", f"{mirrored} copies at v3", mirrored == MANY)

    async def jason(self) -> None:
        """v2 for jason with Chrome, and for nobody else; his requests are not mirrored."""
        before = await self._arrived("reviews v3")
        seen = await self._ask(FEW, JASON_WITH_CHROME)
        copies = await self._arrived("reviews v3") - before
        self._row(
            "jason with Chrome",
            f"reviews v2 × {FEW}, 0 copies",
            f"{_counts(seen)}, {copies} copies",
            seen == {"v2": FEW} and copies == 0,
        )
        for who, headers in (
            ("jason with Firefox", FIREFOX | {"end-user": "jason"}),
            ("maria with Chrome", CHROME | {"end-user": "maria"}),
            ("nobody with Chrome", CHROME),
        ):
            seen = await self._ask(FEW, headers)
            self._row(who, f"reviews v1 × {FEW}", _counts(seen), seen == {"v1": FEW})

    async def the_page(self) -> None:
        """The page itself, logged in and out."""
        async with self._logged_in("jason", CHROME) as browser:
            stars = _stars((await browser.get("/productpage")).text)
            self._row("the page, jason logged in", "black stars", stars, stars == "black stars")
            await browser.post("/logout")
            stars = _stars((await browser.get("/productpage")).text)
            self._row("the page, logged out", "no stars", stars, stars == "no stars")

    async def slow_ratings(self) -> None:
        """Ratings take 5 s: v2 needs them and runs into the route's 2 s; v1 and its copies keep nobody."""
        ratings = self.stage.children["ratings v1"].own_url
        await self.browser.post(f"{ratings}/slow", params={"seconds": 5})
        try:
            async with self._logged_in("jason", CHROME) as browser:
                page, took = await _timed(browser.get("/productpage"))
            sorry = "product reviews are currently unavailable" in page.text
            self._row(
                "ratings take 5 s, jason",
                "page after 2 s, reviews unavailable",
                f"page after {took:.1f} s, reviews {'unavailable' if sorry else 'shown'}",
                page.is_success and sorry and 1.9 <= took < 2.0 + PAGE_LIMIT,
            )
            page, took = await _timed(self.browser.get("/productpage"))
            self._row(
                "ratings take 5 s, others",
                "page at once",
                f"page after {took:.2f} s",
                page.is_success and "unavailable" not in page.text and took < PAGE_LIMIT,
            )
        finally:
            await self.browser.post(f"{ratings}/slow", params={"seconds": 0})

    async def retries(self) -> None:
        """productpage fails twice; a caller in the mesh tries three times and notices nothing."""
        await self.browser.post("/fail", params={"times": 2, "status": 503})
        before = await self._arrived("productpage v1")
        mesh = self.stage.join()
        async with mesh, meshlib.AsyncClient(mesh=mesh) as client:
            answer = await client.get("http://productpage:9080/api/v1/products")
        tries = await self._arrived("productpage v1") - before
        await self.browser.post("/fail", params={"times": 0})
        self._row(
            "productpage fails twice",
            "200 after 3 tries",
            f"{answer.status_code} after {tries} tries",
            (answer.status_code, tries) == (200, 3),
        )

    async def change_of_weights(self) -> None:
        """A saved edit takes effect at once, and no request is lost."""
        async with self._traffic() as traffic:
            saved = self._save(with_weights(self._shipped, 80, 20))
            took, share = await self._new_share(traffic, saved)
        self._row(
            "edit: v1 80 %, v2 20 %",
            f"effect in {demo_driver.PUSH_LIMIT:.0f} s, 20 % ± {SPREAD:.0%}, 0 failed",
            f"effect in {seconds(took)}, {share:.0%}, {traffic.failures}",
            quick(took) and abs(share - 0.2) <= SPREAD and not traffic.failed,
        )

    async def broken_edit(self) -> None:
        """A broken edit changes nothing, and the error says where it is."""
        text, line = broken(self._shipped)
        async with self._traffic() as traffic:
            saved = self._save(text)
            place = f"{FILE}:{line}"
            named = await self._until(lambda: self._control_said(place), True)
            told = time.monotonic()
            await self._look(lambda: traffic.since(told).total() >= SAMPLE)
        after = traffic.since(saved)
        kept = set(after) == {"v1", "v2"}
        self._row(
            "edit: weight: eighty",
            f"error at {place}, last good kept, 0 failed",
            f"{'error at ' + place if named else 'no error'}, {'kept' if kept else _counts(after)}, "
            f"{traffic.failures}",
            bool(named) and kept and not traffic.failed,
        )

    async def strict(self) -> None:
        """The tutorial's enable-strict-mode.yml, saved while traffic flows: nobody in the mesh notices."""
        page = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
        plain = self.stage.children["reviews v1"].url + "/healthz"
        before = await self._answer(plain)
        async with self._traffic() as traffic:
            saved = self._put("enable-strict-mode.yml", strict_mode())
            refused = await self._until_true(lambda: self._is_cut_off(plain), saved)
            told = time.monotonic()
            await self._look(lambda: traffic.since(told).total() >= SAMPLE)
        callers = (await self._stats("reviews v1"))["callers"]
        self._row(
            "enable-strict-mode.yml",
            f"plain text 200, then refused in {demo_driver.PUSH_LIMIT:.0f} s, 0 failed",
            f"plain text {before}, then refused in {seconds(refused)}, {traffic.failures}",
            before == "200" and quick(refused) and not traffic.failed,
        )
        self._row("… who called reviews", page, ", ".join(sorted(callers)), set(callers) == {page})

    async def authorization(self) -> None:
        """An AuthorizationPolicy lets nobody but productpage read reviews; another account is told so."""
        mesh = self.stage.join()
        async with mesh, meshlib.AsyncClient(mesh=mesh) as demo:
            before = (await demo.get("http://reviews:9080/reviews/0")).status_code
            async with self._traffic() as traffic:
                saved = self._put("only-productpage.yml", ONLY_PRODUCTPAGE)
                denied = await self._until_true(lambda: self._is_denied(demo), saved)
                told = time.monotonic()
                await self._look(lambda: traffic.since(told).total() >= MANY)
        self._put("only-productpage.yml", "")
        self._remove("only-productpage.yml")
        self._row(
            "reviews for productpage only",
            f"another 200, then 403 in {demo_driver.PUSH_LIMIT:.0f} s, 0 failed",
            f"another {before}, then 403 in {seconds(denied)}, {traffic.failures}",
            before == 200 and quick(denied) and not traffic.failed,
        )

    async def _is_denied(self, demo: httpx.AsyncClient) -> bool:
        answer = await demo.get("http://reviews:9080/reviews/0")
        return answer.status_code == 403 and answer.text == "RBAC: access denied"

    async def _is_cut_off(self, url: str) -> bool:
        return await self._answer(url) == "cut off"

    async def control_killed(self) -> None:
        """Without a control service traffic goes on; a new one is found and obeyed."""
        async with self._traffic() as traffic:
            process = self.stage.control.process
            if process:
                process.kill()
                process.wait()
            self.stage.control.mourned = True
            killed = time.monotonic()
            await self._look(lambda: traffic.since(killed).total() >= SAMPLE)
            without = traffic.since(killed).total()
            self._row(
                "control killed",
                "traffic goes on, 0 failed",
                f"{without} answered, {len(traffic.failed)} failed",
                without >= SAMPLE and not traffic.failed,
            )
            self._file.write_text(self._shipped)
            await asyncio.to_thread(self.stage.start_control)
            saved = self._save(with_weights(self._shipped, 0, 100))
            await self._look(lambda: traffic.latest(MANY, saved) == {"v2": MANY})
            told = time.monotonic()  # what is asked from now on counts
            await self._look(lambda: traffic.since(told).total() >= MANY)
            last, took = traffic.since(told), traffic.last("v1", saved)
        self._row(
            "control again, edit: v2 100 %",
            f"reviews v2 only, in {REJOIN_LIMIT:.0f} s, 0 failed",
            f"{_counts(last)}, in {seconds(took)}, {traffic.failures}",
            set(last) == {"v2"} and last.total() >= MANY and took < REJOIN_LIMIT and not traffic.failed,
        )

    async def _ask(self, times: int, headers: dict[str, str]) -> Counter[str]:
        """Which version of reviews answered how often; a failure counts by its status."""

        async def once() -> str:
            response = await self.browser.get(REVIEWS, headers=headers)
            return str(response.json().get("version", response.status_code))

        seen: Counter[str] = Counter()
        for _ in range(times // 10):
            seen.update(await asyncio.gather(*(once() for _ in range(10))))
        return seen

    async def _arrived(self, child: str) -> int:
        """How many requests arrived at that process since it started."""
        return int((await self._stats(child))["requests"])

    async def _stats(self, child: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.browser.get(f"{self.stage.children[child].own_url}/stats")).json()
        return found

    @asynccontextmanager
    async def _logged_in(self, name: str, headers: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(
            base_url=self.stage.page, headers=headers, trust_env=False, timeout=10.0, follow_redirects=True
        ) as browser:
            await browser.post("/login", data={"username": name})
            yield browser

    @asynccontextmanager
    async def _traffic(self) -> AsyncIterator[Traffic]:
        """Four askers that never pause, until the block ends."""
        traffic = Traffic()
        going = True

        async def asker() -> None:
            while going:
                asked = time.monotonic()
                try:
                    response = await self.browser.get(REVIEWS)
                    response.raise_for_status()
                    traffic.answers.append((asked, str(response.json()["version"])))
                except httpx.HTTPError as error:
                    traffic.failed.append(str(error))
                    traffic.answers.append((asked, "failed"))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(asker())
            try:
                yield traffic
            finally:
                going = False

    async def _new_share(self, traffic: Traffic, saved: float) -> tuple[float | None, float]:
        """Seconds until v2 first answered, and its share among the requests after that."""
        await self._look(lambda: traffic.first("v2", saved) is not None)
        took = traffic.first("v2", saved)
        if took is None:
            return None, 0.0
        started = saved + took + 0.001
        await self._look(lambda: traffic.since(started).total() >= SAMPLE)
        after = traffic.since(started)
        return took, after["v2"] / max(1, after.total())

    def _save(self, text: str) -> float:
        self._file.write_text(text)
        return time.monotonic()

    async def _control_said(self, words: str) -> bool:
        return words in self.stage.control.log.read_text()

    async def _until(self, ask: Callable[[], Any], goal: int) -> Any:
        """Asks until the answer reaches `goal`, or for 5 s; the last answer."""
        until = time.monotonic() + 5.0
        while (answer := await ask()) < goal and time.monotonic() < until:  # noqa: ASYNC110 as above
            await asyncio.sleep(0.05)
        return answer


def _counts(seen: Counter[str]) -> str:
    """`reviews v1 × 32, v2 × 8`."""
    return "reviews " + ", ".join(f"{version} × {count}" for version, count in sorted(seen.items()))


def _stars(html: str) -> str:
    colors = {match[1] for match in re.finditer(r'class="stars (\w+)"', html)}
    return f"{' and '.join(sorted(colors))} stars" if colors else "no stars"


async def _timed(asked: Any) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    response = await asked
    return response, time.monotonic() - started
