"""details: what is printed on the book's imprint."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meshlib_bookinfo.books import DETAILS, product
from meshlib_bookinfo.workload import Workload


def routes(workload: Workload) -> list[BaseRoute]:
    """`GET /details/{id}`."""

    async def details(request: Request) -> Response:
        product_id = request.path_params["product_id"]
        if product(product_id) is None:
            return JSONResponse({"error": "no such product"}, status_code=404)
        return JSONResponse({"id": product_id, "version": workload.version, **DETAILS})

    return [Route("/details/{product_id:int}", details)]
