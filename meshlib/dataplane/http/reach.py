"""Makes the connection of an attempt on an event loop, without a word of any protocol."""

import asyncio
from collections.abc import Callable
from typing import cast

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Keepalive
from meshlib.dataplane.http import local
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.pools import NO_DESCRIPTOR


async def reach(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    attempt: Attempt,
    make_room: Callable[[], bool],
) -> None:
    """Gives the protocol its transport. OSError. If the process has no descriptor left, `make_room` closes
    what is idle; False: nothing is.
    """
    while True:
        try:
            await _reach(loop, protocol, attempt)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR or not make_room():
                raise
            await asyncio.sleep(0)  # in which the loop closes them
        else:
            return


class _Headed(asyncio.Protocol):
    """Sends the header on a new connection, which is another protocol's from then on."""

    def __init__(self, version: int, then: asyncio.BaseProtocol) -> None:
        self._version = version
        self._then = then

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        from meshlib.dataplane.proxy_protocol import proxy_header

        made = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        made.write(proxy_header(self._version, made.get_extra_info("socket")))
        made.set_protocol(self._then)
        self._then.connection_made(made)


async def _reach(loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, attempt: Attempt) -> None:
    if attempt.upstream.proxy_protocol:
        protocol = _Headed(attempt.upstream.proxy_protocol, protocol)
    address = attempt.at or attempt.address
    path = local.path_of(address)
    if path is None:
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        _set_options(transport, attempt.upstream.keepalive)
    else:
        await loop.create_unix_connection(lambda: protocol, path)


def _set_options(transport: asyncio.Transport, keepalive: Keepalive | None) -> None:
    try:
        set_options(transport.get_extra_info("socket"), keepalive)
    except OSError:
        transport.abort()
        raise
