"""requests in the mesh: a Session that is requests' own, and an adapter to mount on one's own.

with meshlib_requests.Session() as session:
    answer = session.get("http://reviews:9080/")
    print(answer.status_code, meshlib_requests.facts(answer).source)

session.mount("http://", meshlib_requests.Adapter(mesh))
"""

from meshlib_requests.adapter import Adapter, facts
from meshlib_requests.session import Session

__all__ = ["Adapter", "Session", "facts"]
