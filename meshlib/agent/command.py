"""A program of the system, run to its end: `ip`, `nft`, `nsenter`."""

import asyncio
import shutil

from meshlib.errors import ConfigError

_PACKAGES = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "unshare": "util-linux"}
PATIENCE = 20.0
"""Seconds that one may take."""


class CommandFailed(OSError):
    """It ended with another status than 0; the text is what it said."""


def executable(name: str) -> str:
    """Where it is. ConfigError: it is not installed."""
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin")
    if found is None:
        raise ConfigError(f"`{name}` is not installed, it is of the package {_PACKAGES.get(name, name)}")
    return found


async def run(*command: str, given: str = "") -> str:
    """What it printed; `given` is its standard input. CommandFailed; ConfigError: it is not installed."""
    found = executable(command[0])
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        found, *command[1:], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(given.encode())
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise CommandFailed(f"`{' '.join(command)}` took more than {PATIENCE:g} s") from None
        raise
    if process.returncode:
        said = err.decode(errors="replace").strip() or f"status {process.returncode}"
        raise CommandFailed(f"`{' '.join(command)}`: {said}")
    return out.decode(errors="replace")
