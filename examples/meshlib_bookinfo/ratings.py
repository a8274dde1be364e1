"""ratings: how many stars each reader gave."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meshlib_bookinfo.books import RATINGS, product
from meshlib_bookinfo.workload import Workload


def routes(workload: Workload) -> list[BaseRoute]:
    """`GET /ratings/{id}`."""

    async def ratings(request: Request) -> Response:
        product_id = request.path_params["product_id"]
        if product(product_id) is None:
            return JSONResponse({"error": "no such product"}, status_code=404)
        return JSONResponse({"id": product_id, "version": workload.version, "ratings": RATINGS})

    return [Route("/ratings/{product_id:int}", ratings)]
