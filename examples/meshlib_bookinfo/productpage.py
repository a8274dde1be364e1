"""productpage: the shop's front. Asks details and reviews at the same time and draws what came.

What does not come is said in its place on the page; the page itself always answers. Whoever is
logged in travels on in the `end-user` header, and the browser in `user-agent`: the mesh's rules
look at both. The log-in asks for a name only and proves nothing.
"""

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from meshlib_bookinfo import page
from meshlib_bookinfo.answer import ask
from meshlib_bookinfo.books import PRODUCTS, product
from meshlib_bookinfo.workload import Workload, forwarded

SESSION = "session"
LONGEST_NAME = 40
LONGEST_FORM = 4096
STATIC = Path(__file__).parent / "static"


def routes(workload: Workload) -> list[BaseRoute]:
    """The page, log-in and log-out, its style sheet, and the same content as JSON."""

    async def show(request: Request) -> Response:
        book, headers = PRODUCTS[0], _headers(request)
        details, reviews = await asyncio.gather(
            ask(workload.client, f"http://details:9080/details/{book['id']}", headers),
            ask(workload.client, f"http://reviews:9080/reviews/{book['id']}", headers),
        )
        return HTMLResponse(
            page.render(book, details, reviews, user=_user(request), version=workload.version)
        )

    async def login(request: Request) -> Response:
        name = _name(await _field(request, "username"))
        response = RedirectResponse("/productpage", status_code=303)
        if name:
            response.set_cookie(SESSION, quote(name), httponly=True, samesite="lax")
        return response

    async def logout(_: Request) -> Response:
        response = RedirectResponse("/productpage", status_code=303)
        response.delete_cookie(SESSION)
        return response

    async def api(request: Request) -> Response:
        product_id = request.path_params["product_id"]
        if product(product_id) is None:
            return JSONResponse({"error": "no such product"}, status_code=404)
        part = request.path_params.get("part", "details")
        if part not in ("details", "reviews", "ratings"):
            return JSONResponse({"error": "no such page"}, status_code=404)
        answer = await ask(workload.client, f"http://{part}:9080/{part}/{product_id}", _headers(request))
        if answer.reason:
            return JSONResponse({"error": _sorry(part), "reason": answer.reason}, status_code=answer.status)
        return JSONResponse(answer.body)

    async def home(_: Request) -> Response:
        return RedirectResponse("/productpage")

    async def products(_: Request) -> Response:
        return JSONResponse(PRODUCTS)

    return [
        Route("/", home),
        Route("/productpage", show),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["GET", "POST"]),
        Route("/api/v1/products", products),
        Route("/api/v1/products/{product_id:int}", api),
        Route("/api/v1/products/{product_id:int}/{part}", api),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def _headers(request: Request) -> dict[str, str]:
    """What travels on. Who is logged in here wins; without a log-in, a caller such as curl may say
    itself for whom it acts.
    """
    user = _user(request)
    return forwarded(request.headers, **({"end-user": user} if user else {}))


def _user(request: Request) -> str:
    return _name(unquote(request.cookies.get(SESSION, "")))


def _name(text: str) -> str:
    """A name that can travel in a header: printable ASCII and not too long; else nobody."""
    name = text.strip()
    return name if len(name) <= LONGEST_NAME and name.isascii() and name.isprintable() else ""


async def _field(request: Request, name: str) -> str:
    """One field of a posted form; empty when it is missing or the form is too long to be one of ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            return ""
    return parse_qs(body.decode("latin-1")).get(name, [""])[0]


def _sorry(part: str) -> str:
    return f"Sorry, product {part} are currently unavailable"
