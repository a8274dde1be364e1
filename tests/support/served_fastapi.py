"""A FastAPI application that calls another service; nothing in it hands anything on."""

from typing import Any

from fastapi import FastAPI, Request
from support.told import BACK, told

import meshlib
from meshlib_fastapi import Caller, install

app = FastAPI()
install(app)
client = meshlib.AsyncClient()


@app.get("/seen")
async def seen(caller: Caller, request: Request) -> dict[str, Any]:
    return told(caller, request.headers)


@app.get("/hop")
async def hop(caller: Caller, request: Request) -> dict[str, Any]:
    return {**told(caller, request.headers), "next": (await client.get(BACK)).json()}
