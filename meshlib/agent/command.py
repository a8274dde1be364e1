"""A program of the system, run to its end: `ip`, `nft`, `nsenter`."""

import asyncio
import shutil

from meshlib.errors import ConfigError

_PACKAGES = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
PATIENCE = 20.0
"""Seconds that one may take."""


class CommandFailed(OSError):
    """It ended with another status than 0; the text is what it said."""


async def run(*command: str, given: str = "") -> str:
    """What it printed; `given` is its standard input. CommandFailed; ConfigError: it is not installed."""
    found = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin")
    if found is None:
        package = _PACKAGES.get(command[0], command[0])
        raise ConfigError(f"`{command[0]}` is not installed, it is of the package {package}")
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
