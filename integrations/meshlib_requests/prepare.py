"""A request as requests prepares it, without the work that comes to nothing.

Rules:

- What is sent is what requests would send. What is plain to see here (a URL in its normal form, headers of
  text, no cookies) is taken as it is; for all else requests' own method is called.
- Cookie jars are made when they are asked for.
"""

import re
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any

from requests import PreparedRequest, Request, Session
from requests.cookies import RequestsCookieJar, cookiejar_from_dict, merge_cookies
from requests.sessions import merge_hooks, merge_setting
from requests.structures import CaseInsensitiveDict
from requests.utils import check_header_validity, get_netrc_auth

NORMAL = re.compile(
    r"http://([a-z0-9][a-z0-9.-]*)(?::([1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    r"((?!.*/\.)/[A-Za-z0-9._~/=;,:@!$&'()*+-]*(?:\?[A-Za-z0-9._~/=;,:@!$&'()*+?-]+)?)"
)
"""A URL of which requests and urllib3 change nothing: its host, port and target."""
_NAME = re.compile(r"[!-9;-~]+")
_VALUE = re.compile(r"(?:[!-~][ -~]*)?")


class Prepared(PreparedRequest):
    """A requests.PreparedRequest."""

    _jar: CookieJar | None = None

    @property
    def _cookies(self) -> CookieJar:
        if self._jar is None:
            self._jar = RequestsCookieJar()
        return self._jar

    @_cookies.setter
    def _cookies(self, jar: CookieJar | None) -> None:
        self._jar = jar

    def prepare_url(self, url: Any, params: Any) -> None:
        """Sets the URL."""
        if not params and type(url) is str and NORMAL.fullmatch(url):
            self.url = url
        else:
            super().prepare_url(url, params)

    def prepare_headers(self, headers: Mapping[str, str | bytes] | None) -> None:
        """Sets the headers, which are this request's own from now on. InvalidHeader."""
        if type(headers) is not CaseInsensitiveDict:
            super().prepare_headers(headers)
            return
        for header in headers._store.values():  # noqa: SLF001 - `items` takes many times as long
            name, value = header
            if type(name) is not str:
                super().prepare_headers(headers)
                return
            if type(value) is not str or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                check_header_validity(header)
        self.headers = headers

    def prepare_cookies(self, cookies: Any) -> None:
        """Sets the Cookie header. None: there are no cookies."""
        if cookies is not None:
            super().prepare_cookies(cookies)

    def prepare_auth(self, auth: Any, url: Any = "") -> None:
        """Sets what the application, or the URL, says of who asks."""
        if auth is not None or "@" in (self.url or ""):
            super().prepare_auth(auth, url)


def prepared(request: Request, session: Session) -> PreparedRequest:
    """As `session.prepare_request` of requests."""
    auth: Any = request.auth
    url: Any = request.url
    if session.trust_env and not auth and not session.auth:
        auth = get_netrc_auth(url)
    params: Any = request.params
    made = Prepared()
    made.prepare(
        method=(request.method or "").upper(),
        url=url,
        files=request.files,
        data=request.data,
        json=request.json,
        headers=_headers(request.headers, session.headers),
        params=merge_setting(params, session.params) if params or session.params else None,
        auth=merge_setting(auth, session.auth),
        cookies=_cookies(request.cookies, session.cookies),
        hooks=merge_hooks(request.hooks, session.hooks),
    )
    return made


def _headers(own: Any, sessions: Any) -> Any:
    if type(sessions) is not CaseInsensitiveDict or not (own is None or type(own) is dict):
        return merge_setting(own, sessions, dict_class=CaseInsensitiveDict)
    merged: CaseInsensitiveDict[Any] = CaseInsensitiveDict()
    merged._store.update(sessions._store)  # noqa: SLF001 - as above
    for name, value in (own or {}).items():
        merged[name] = value
    for name in [name for name, (_, value) in merged._store.items() if value is None]:  # noqa: SLF001
        del merged[name]
    return merged


def _cookies(own: Any, sessions: Any) -> CookieJar | None:
    if not own and next(iter(sessions), None) is None:
        return None
    if not isinstance(own, CookieJar):
        own = cookiejar_from_dict(own or {})
    return merge_cookies(merge_cookies(RequestsCookieJar(), sessions), own)
