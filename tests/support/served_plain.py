"""A FastAPI application for servers that can't say who calls; it registers as plain text."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from support.told import BACK, told

import meshlib
from meshlib_fastapi import Caller, install


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    ports = {"http": int(os.environ["PORT"])}
    with meshlib.register(ports=ports, address="127.0.0.1"):
        yield


app = FastAPI(lifespan=lifespan)
install(app, port=int(os.environ.get("PORT", "0")))
client = meshlib.AsyncClient()


@app.get("/hop")
async def hop(caller: Caller, request: Request) -> dict[str, Any]:
    return {**told(caller, request.headers), "next": (await client.get(BACK)).json()}
