"""Bookinfo's services without sockets: what they answer, forward and count; the other side is made up."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from meshlib_bookinfo import details, productpage, ratings, reviews
from meshlib_bookinfo.workload import Workload

Handler = Callable[[httpx.Request], httpx.Response]


def nobody(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError(f"nobody at {request.url.host}")


def service(
    module: Any, name: str, version: str = "v1", other: Handler = nobody
) -> tuple[httpx.AsyncClient, Workload]:
    """A client of one service whose calls to others are answered by `other`."""
    workload = Workload(name, version)
    workload.client = httpx.AsyncClient(transport=httpx.MockTransport(other))  # type: ignore[assignment]
    app = workload.application(module.routes(workload))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop"), workload


def rated(request: httpx.Request) -> httpx.Response:
    assert request.url == "http://ratings:9080/ratings/0"
    return httpx.Response(200, json={"version": "v1", "ratings": {"Antonia": 5, "Dromio": 4}})


@pytest.mark.parametrize(("version", "color"), [("v2", "black"), ("v3", "red")])
async def test_reviews_with_stars(version: str, color: str) -> None:
    client, _ = service(reviews, "reviews", version, rated)
    answer = (await client.get("/reviews/0")).json()
    assert (answer["version"], answer["ratings_version"]) == (version, "v1")
    assert [review["rating"] for review in answer["reviews"]] == [
        {"stars": 5, "color": color},
        {"stars": 4, "color": color},
    ]


async def test_reviews_v1_asks_nobody() -> None:
    client, _ = service(reviews, "reviews")
    answer = (await client.get("/reviews/0")).json()
    assert [sorted(review) for review in answer["reviews"]] == [["reviewer", "text"]] * 2


@pytest.mark.parametrize(
    "other", [nobody, lambda _: httpx.Response(503), lambda _: httpx.Response(200, text="no JSON")]
)
async def test_reviews_without_ratings_are_still_reviews(other: Handler) -> None:
    client, _ = service(reviews, "reviews", "v2", other)
    response = await client.get("/reviews/0")
    assert response.status_code == 200
    assert {review["rating"]["error"] for review in response.json()["reviews"]} == {
        "ratings are currently unavailable"
    }


async def test_details_and_ratings() -> None:
    client, _ = service(details, "details")
    assert (await client.get("/details/0")).json()["pages"] == 200
    assert (await client.get("/details/7")).status_code == 404
    client, _ = service(ratings, "ratings", "v2")
    assert (await client.get("/ratings/0")).json()["version"] == "v2"
    assert (await client.get("/ratings/x")).status_code == 404


async def test_login_travels_on_and_logout_ends_it() -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    def other(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("end-user"), request.headers.get("user-agent")))
        return httpx.Response(200, json={"version": "v1", "reviews": []})

    client, _ = service(productpage, "productpage", other=other)
    client.headers["user-agent"] = "Chrome"
    login = await client.post("/login", data={"username": " jason "})
    assert (login.status_code, login.headers["location"]) == (303, "/productpage")
    assert "HttpOnly" in login.headers["set-cookie"]
    assert '<strong id="user">jason</strong>' in (await client.get("/productpage")).text
    assert sorted(seen) == [("details", "jason", "Chrome"), ("reviews", "jason", "Chrome")]
    seen.clear()
    await client.get("/logout")
    assert "Log in" in (await client.get("/productpage")).text
    assert sorted(seen) == [("details", None, "Chrome"), ("reviews", None, "Chrome")]


@pytest.mark.parametrize(
    "form", [b"", b"username=", b"username=a%0d%0ax: y", b"username=" + b"a" * 5000, b"\xff\xfe"]
)
async def test_what_is_no_name_logs_nobody_in(form: bytes) -> None:
    client, _ = service(productpage, "productpage")
    response = await client.post("/login", content=form)
    assert response.status_code == 303
    assert "set-cookie" not in response.headers


async def test_page_answers_when_nobody_else_does() -> None:
    client, _ = service(productpage, "productpage")
    response = await client.get("/productpage")
    assert response.status_code == 200
    assert "product reviews are currently unavailable" in response.text
    assert "product details are currently unavailable" in response.text
    assert "<small>nobody at reviews</small>" in response.text


async def test_api_tells_the_meshs_reason() -> None:
    facts = SimpleNamespace(document="", source="", endpoint="", detail="no healthy endpoint")

    def other(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, extensions={"meshlib": facts})

    client, _ = service(productpage, "productpage", other=other)
    response = await client.get("/api/v1/products/0/reviews")
    assert response.status_code == 503
    assert response.json() == {
        "error": "Sorry, product reviews are currently unavailable",
        "reason": "no healthy endpoint",
    }


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/products", 200),
        ("/api/v1/products/1", 404),
        ("/api/v1/products/0/secrets", 404),
        ("/static/bookinfo.css", 200),
        ("/static/../books.py", 404),
        ("/", 307),
        ("/login", 405),
    ],
)
async def test_paths(path: str, status: int) -> None:
    client, _ = service(productpage, "productpage")
    assert (await client.get(path)).status_code == status


async def test_requests_are_counted_and_housekeeping_is_not() -> None:
    client, _ = service(details, "details")
    await client.get("/details/0", headers={"end-user": "jason"})
    await client.get("/details/0")
    await client.get("/healthz")
    stats = (await client.get("/stats")).json()
    assert (stats["requests"], stats["users"], stats["failed"]) == (2, {"jason": 1, "": 1}, 0)


async def test_told_to_fail() -> None:
    client, _ = service(details, "details")
    await client.post("/fail", params={"times": 2, "status": 502})
    assert [(await client.get("/details/0")).status_code for _ in range(3)] == [502, 502, 200]


async def test_told_to_be_slow() -> None:
    client, workload = service(ratings, "ratings")
    await client.post("/slow", params={"seconds": 0.5})
    assert workload.delay == 0.5


@pytest.mark.parametrize(
    "order",
    [
        "/slow",
        "/slow?seconds=x",
        "/slow?seconds=-1",
        "/slow?seconds=61",
        "/slow?seconds=nan",
        "/fail",
        "/fail?times=x",
        "/fail?times=-1",
        "/fail?times=1&status=200",
        "/fail?times=1&status=nan",
    ],
)
async def test_bad_orders_are_refused(order: str) -> None:
    client, workload = service(ratings, "ratings")
    assert (await client.post(order)).status_code == 400
    assert workload.delay == 0
    assert (await client.get("/ratings/0")).status_code == 200
