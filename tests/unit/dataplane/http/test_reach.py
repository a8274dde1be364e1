"""A connection that is made on an event loop, by a process that has no descriptor left."""

import asyncio
import errno
from typing import Any

import pytest

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import RequestHead
from meshlib.dataplane.http.reach import reach

ATTEMPT = Attempt("c", ("127.0.0.1", 9), RequestHead("GET", "http", "a", "/", []), Upstream(), None, None)


class Loop:
    """Fails so many times."""

    def __init__(self, error: int, times: int) -> None:
        self.error, self.times = error, times

    async def create_connection(self, make: Any, *address: Any) -> Any:
        if self.times:
            self.times -= 1
            raise OSError(self.error, "no")
        return self, make()

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *_: Any) -> None:
        """It is none."""


async def made(loop: Any, *room: bool) -> list[bool]:
    left = list(room)
    await reach(loop, asyncio.Protocol(), ATTEMPT, lambda: left.pop(0))
    return left


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
async def test_it_is_tried_again_as_long_as_there_is_something_to_close(error: int) -> None:
    assert await made(Loop(error, 2), True, True, True) == [True]
    with pytest.raises(OSError, match="no"):
        await made(Loop(error, 3), True, True, False)


async def test_any_other_failure_is_one() -> None:
    with pytest.raises(ConnectionRefusedError):
        await made(Loop(errno.ECONNREFUSED, 1))
