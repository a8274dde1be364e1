"""urllib3 in the mesh: a PoolManager that is urllib3's own, whose http:// requests the mesh routes.

with meshlib_urllib3.PoolManager() as http:
    answer = http.request("GET", "http://reviews:9080/")
    print(answer.status, meshlib_urllib3.facts(answer).source)
"""

from meshlib_urllib3.pools import PoolManager
from meshlib_urllib3.proxies import ProxyManager
from meshlib_urllib3.response import facts

__all__ = ["PoolManager", "ProxyManager", "facts"]
