"""aiohttp in the mesh: a connector for one's own session, and a session that has one.

async with meshlib_aiohttp.ClientSession() as session:
    async with session.get("http://reviews:9080/") as response:
        print(response.status, meshlib_aiohttp.facts(response).source)

aiohttp.ClientSession(connector=meshlib_aiohttp.Connector(mesh))
"""

from meshlib_aiohttp.connector import ClientSession, Connector
from meshlib_aiohttp.exchange import facts

__all__ = ["ClientSession", "Connector", "facts"]
