"""One xDS stream of the Envoy beside the agent, answered from what the agent has."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from meshlib.xds.kinds import BY_TYPE_URL
from meshlib.xds.server_stream import ServerStream
from meshlib.xds.snapshot import Snapshot

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at what there is."""


async def answers(
    stream: ServerStream,
    requests: AsyncIterator[Any],
    now: Callable[[], Snapshot],
    until: "asyncio.Future[Any] | None" = None,
) -> AsyncIterator[Any]:
    """The responses to requests, and again whenever there is something else `now`; for as long as the other
    side asks, or `until` is done. ProtocolError.

    Who comes with what it was sent earlier keeps all of it: what there is may be less than it has.
    """
    asked, hurry, last = asyncio.Event(), False, None
    hearing = asyncio.create_task(_hear(requests, stream, asked))
    asking: asyncio.Task[Any] | None = None
    try:
        while not hearing.done() and (until is None or not until.done()):
            found, heard = now(), asked.is_set()
            asked.clear()
            if heard or hurry or found is not last:
                for response in stream.publish(found, hurry, keep=stream.delta and stream.returning):
                    yield response
                last = found
            asking = asyncio.create_task(asked.wait())
            waits = [asking] if until is None else [asking, until]
            done, _ = await asyncio.wait(waits, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            hurry = stream.holding and not done
            asking.cancel()
        if hearing.done():
            await hearing
    finally:
        for task in (hearing, asking):
            if task is not None:
                task.cancel()


async def _hear(requests: AsyncIterator[Any], stream: ServerStream, asked: asyncio.Event) -> None:
    try:
        async for request in requests:
            if request.HasField("error_detail"):
                kind = BY_TYPE_URL.get(request.type_url)
                names = ", ".join(getattr(request, "resource_names", ()))  # an incremental one names none
                what = " ".join(filter(None, (kind.short if kind else "", names)))
                log.error("Envoy refuses %s: %s", what, request.error_detail.message)
            stream.received(request)
            asked.set()
    finally:
        asked.set()
