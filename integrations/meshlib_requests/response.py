"""A response as requests has it, of which no more is made than is asked for."""

import datetime as dt

import requests
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from meshlib_urllib3.response import Received


class Response(requests.Response):
    """A requests.Response."""

    _jar: RequestsCookieJar | None = None

    def __init__(self, request: PreparedRequest, raw: Received, adapter: HTTPAdapter) -> None:
        # Not requests' own `__init__`: it makes what is made here once more.
        answer = raw.answer
        self._content = False
        self._content_consumed = False
        self._next = None
        self.status_code = answer.status
        self.headers = CaseInsensitiveDict()
        store = self.headers._store  # noqa: SLF001 - its own methods take many times as long
        for name, value in answer.wire_headers():
            text, said = name.decode("latin-1"), value.decode("latin-1")
            lower = text.lower()
            before = store.get(lower)
            store[lower] = (text, said) if before is None else (before[0], f"{before[1]}, {said}")
        self.raw = raw
        self.url = request.url or ""
        self.encoding = get_encoding_from_headers(self.headers) if "content-type" in store else None
        self.history = []
        self.reason = answer.reason.decode("latin-1")
        self.elapsed = dt.timedelta(0)
        self.request = request
        self.connection = adapter
        if "set-cookie" in store:
            extract_cookies_to_jar(self.cookies, request, raw)

    @property
    def cookies(self) -> RequestsCookieJar:
        """Those that the peer set."""
        if self._jar is None:
            self._jar = RequestsCookieJar()
        return self._jar

    @cookies.setter
    def cookies(self, jar: RequestsCookieJar) -> None:
        self._jar = jar

    @property
    def content(self) -> bytes:
        """The body, in bytes."""
        if self._content is False and not self._content_consumed and isinstance(self.raw, Received):
            whole = self.raw.take_whole()
            if whole is not None:
                self._content = whole
        return super().content
