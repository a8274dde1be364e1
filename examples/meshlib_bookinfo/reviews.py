"""reviews: what readers think. v1 knows words only; v2 asks ratings and draws black stars, v3 red ones."""

from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meshlib_bookinfo.books import REVIEWS, product
from meshlib_bookinfo.workload import Workload, forwarded

STARS = {"v2": "black", "v3": "red"}


def routes(workload: Workload) -> list[BaseRoute]:
    """`GET /reviews/{id}`."""

    async def reviews(request: Request) -> Response:
        product_id = request.path_params["product_id"]
        if product(product_id) is None:
            return JSONResponse({"error": "no such product"}, status_code=404)
        answer: dict[str, Any] = {
            "id": product_id,
            "version": workload.version,
            "reviews": [dict(review) for review in REVIEWS],
        }
        color = STARS.get(workload.version)
        if color:
            stars = await _ratings(workload, product_id, forwarded(request.headers))
            answer["ratings_version"] = stars.get("version", "")
            for review in answer["reviews"]:
                review["rating"] = _rating(stars, review["reviewer"], color)
        return JSONResponse(answer)

    return [Route("/reviews/{product_id:int}", reviews)]


async def _ratings(workload: Workload, product_id: int, headers: dict[str, str]) -> dict[str, Any]:
    """What ratings says, or {"error": …}: reviews without stars are better than none."""
    try:
        response = await workload.client.get(f"http://ratings:9080/ratings/{product_id}", headers=headers)
        response.raise_for_status()
        return dict(response.json())
    except (httpx.HTTPError, ValueError):
        return {"error": "ratings are currently unavailable"}


def _rating(stars: dict[str, Any], reviewer: str, color: str) -> dict[str, Any]:
    if "error" in stars:
        return {"error": stars["error"]}
    return {"stars": int(stars["ratings"].get(reviewer, 0)), "color": color}
